"""What a model does on the phone, measured: scripted callers that react to it, and the judging of what they heard.

    rows        what is measured: who calls, in which words, what shall come of it
    plans       what a caller does, turn by turn, by seed
    caller      a caller, frame by frame: hears the agent, says its line when it is time (pure)
    offline     many callers against an engine, faster than real time
    judging     what was heard against what was right (pure)
    recogniser  the closed-set recogniser that reads the agent's sound
"""
