"""The command line's groups `agent`, `number`, `retention` and `webhook`: who answers calls, for how long they are
kept, and who is told of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from calls.rules import LONGEST_S
from calls.settings import load_settings

agent = typer.Typer(help="Agents: what answers calls, from the next one on.", no_args_is_help=True,
                    rich_markup_mode=None)
number = typer.Typer(help="Numbers, and the agents that they reach.", no_args_is_help=True, rich_markup_mode=None)

retention = typer.Typer(help="How long calls are kept, and what is redacted in them.", no_args_is_help=True,
                        rich_markup_mode=None)

webhook = typer.Typer(help="Webhooks: programs that are told what happens in calls.", no_args_is_help=True,
                      rich_markup_mode=None)

_Name = Annotated[str, typer.Argument(help="an agent's name, from `tandem agent list`")]
_Webhook = Annotated[str, typer.Argument(help="a webhook's id, from `tandem webhook list`")]
_Delivery = Annotated[int, typer.Argument(min=1, max=2**63 - 1, help="its number, from `tandem webhook deliveries`")]
_Pattern = Annotated[str, typer.Argument(help="as it is called; * stands for any characters, ? for one")]


@agent.command("list")
def agent_list() -> None:
    """The agents there are, a line each."""
    from tandem.agent_commands import list_agents

    list_agents(load_settings())


@agent.command("show")
def agent_show(name: _Name) -> None:
    """One agent, as JSON that `tandem agent put` takes."""
    from tandem.agent_commands import show_agent

    show_agent(load_settings(), name)


@agent.command("put")
def agent_put(name: _Name, file: Annotated[Path, typer.Argument(help="JSON; - is stdin")]) -> None:
    """Make an agent, or change it wholly."""
    from tandem.agent_commands import put_agent

    put_agent(load_settings(), name, file)


@agent.command("set")
def agent_set(
    name: _Name,
    model: Annotated[str | None, typer.Option(help="as workers offer it")] = None,
    greeting: Annotated[str | None, typer.Option(help="what it says at the answer; '' for nothing")] = None,
    role: Annotated[str | None, typer.Option(help="who it is, for models taught roles; '' for nobody")] = None,
    voice: Annotated[str | None, typer.Option(help="how it sounds, of such a model")] = None,
    longest_call: Annotated[float | None, typer.Option(min=0, max=LONGEST_S, help="seconds; 0 for no limit")] = None,
    longest_silence: Annotated[float | None, typer.Option(min=0, max=LONGEST_S, help="seconds; 0 for no limit")] = None,
    recorded: Annotated[bool | None, typer.Option("--recorded/--not-recorded", help="whether its calls are")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="the same draws in each call")] = None,
    text_temperature: Annotated[float | None, typer.Option(min=0, max=10)] = None,
    text_top_k: Annotated[int | None, typer.Option(min=0)] = None,
    audio_temperature: Annotated[float | None, typer.Option(min=0, max=10)] = None,
    audio_top_k: Annotated[int | None, typer.Option(min=0)] = None,
    pad_bias: Annotated[float | None, typer.Option(min=-100, max=100, help="above 0 it speaks less")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(min=0.1, max=10)] = None,
    rules: Annotated[Path | None, typer.Option(help="JSON, a list (docs/operators.md); - is stdin")] = None,
) -> None:
    """Change what is named of an agent, or make one: then it needs a model."""
    from tandem.agent_commands import set_agent

    changes: dict[str, Any] = {key: value for key, value in (
        ("model", model), ("greeting", greeting), ("role", role), ("voice", voice), ("recorded", recorded))
        if value is not None}
    changes |= {key: seconds or None for key, seconds in (
        ("longest_call_s", longest_call), ("longest_silence_s", longest_silence)) if seconds is not None}
    sampling = {key: value for key, value in (
        ("seed", seed), ("text_temperature", text_temperature), ("text_top_k", text_top_k),
        ("audio_temperature", audio_temperature), ("audio_top_k", audio_top_k), ("pad_bias", pad_bias),
        ("repetition_penalty", repetition_penalty)) if value is not None}
    set_agent(load_settings(), name, changes, sampling, rules)


@agent.command("remove")
def agent_remove(name: _Name) -> None:
    """Remove an agent. One of the settings is as it was there afterwards."""
    from tandem.agent_commands import remove_agent

    remove_agent(load_settings(), name)


@number.command("list")
def number_list() -> None:
    """Numbers and patterns in the order in which they are tried, and the agents that they reach."""
    from tandem.agent_commands import list_numbers

    list_numbers(load_settings())


@number.command("set")
def number_set(pattern: _Pattern, name: _Name) -> None:
    """Let calls to a number reach an agent."""
    from tandem.agent_commands import set_number

    set_number(load_settings(), pattern, name)


@number.command("remove")
def number_remove(pattern: _Pattern) -> None:
    """Let calls to a number reach whom they would without it."""
    from tandem.agent_commands import remove_number

    remove_number(load_settings(), pattern)


@retention.command("show")
def retention_show() -> None:
    """The rules, as JSON that `tandem retention set` takes."""
    from tandem.retention_commands import show_rules

    show_rules(load_settings())


@retention.command("set")
def retention_set(file: Annotated[Path, typer.Argument(help="JSON; - is stdin")]) -> None:
    """Let these rules hold, in place of all before."""
    from tandem.retention_commands import set_rules

    set_rules(load_settings(), file)


@retention.command("run")
def retention_run(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell what would be done")] = False,
) -> None:
    """Carry the rules out now, as the persister does every minute."""
    from tandem.retention_commands import run_rules

    run_rules(load_settings(), dry_run)


@webhook.command("add")
def webhook_add(
    url: Annotated[str, typer.Argument(help="where to; https, but to networks in TANDEM_WEBHOOK_NETWORKS")],
    event: Annotated[list[str], typer.Option(help="call.ended, recording.kept, … (docs/webhooks.md); may be given "
                                             "again")],
    description: Annotated[str, typer.Option(help="what for")] = "",
) -> None:
    """Make a webhook. Its id and its secret are printed; the secret only this once."""
    from tandem.webhook_commands import add_webhook

    add_webhook(load_settings(), url, tuple(event), description)


@webhook.command("list")
def webhook_list() -> None:
    """The webhooks there are, without their secrets."""
    from tandem.webhook_commands import list_webhooks

    list_webhooks(load_settings())


@webhook.command("remove")
def webhook_remove(id: _Webhook) -> None:
    """Remove a webhook, with what it was told and would have been."""
    from tandem.webhook_commands import remove_webhook

    remove_webhook(load_settings(), id)


@webhook.command("deliveries")
def webhook_deliveries(
    id: _Webhook,
    number: Annotated[int | None, typer.Argument(min=1, max=2**63 - 1, help="one of them, with its body")] = None,
    state: Annotated[Literal["pending", "delivered", "failed"] | None, typer.Option(help="only those")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="newest ones")] = 20,
) -> None:
    """What a webhook was told and is to be told, a line each; or how one delivery was tried, and what is in it."""
    from tandem.webhook_commands import list_deliveries, show_delivery

    if number is None:
        list_deliveries(load_settings(), id, state, limit)
    else:
        show_delivery(load_settings(), id, number)


@webhook.command("replay")
def webhook_replay(id: _Webhook, number: _Delivery) -> None:
    """Have the web role send a delivery again, with the same id."""
    from tandem.webhook_commands import replay_delivery

    replay_delivery(load_settings(), id, number)
