"""Channels: how a message gets to people, by apprise (https://github.com/caronc/apprise), or into a file here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import apprise

from bronze_assets.alert_settings import LOG, Level
from bronze_assets.errors import SettingsError
from bronze_assets.findings import Finding
from bronze_assets.operations.alerts import Message
from bronze_assets.settings import Settings
from bronze_assets.vaults import resolve_secret

logger = logging.getLogger(__name__)

_KINDS = {
    Level.INFO: apprise.NotifyType.INFO,
    Level.WARNING: apprise.NotifyType.WARNING,
    Level.CRITICAL: apprise.NotifyType.FAILURE,
}
_SECONDS = 10
_LARGEST_LOG = 10 * 2**20


def log_path(settings: Settings) -> Path:
    """The file that the channel `log` writes to."""
    return settings.home / "alerts.log"


def sender(settings: Settings) -> Callable[[str, Message], bool]:
    """Sends a message to a channel by name, and says whether it went well. Never raises, nor shows a channel's URL."""

    def send(name: str, message: Message) -> bool:
        try:
            if settings.alerts.channels[name] == LOG:
                _write(log_path(settings), message)
                return True
            service = _service(settings, name)
            service.socket_connect_timeout = service.socket_read_timeout = _SECONDS
            asked = f"[{settings.environment}] {message.title}"
            return bool(service.notify(body=message.body, title=asked, notify_type=_KINDS[message.level]))
        except SettingsError as error:
            logger.warning("channel %s: %s", name, error)
        except Exception as error:
            # Of a library, whose words may hold the URL.
            logger.warning("channel %s: nothing was sent (%s)", name, type(error).__name__)
        return False

    return send


def look_at_channels(settings: Settings) -> Iterator[Finding]:
    """For `doctor`: whether each channel can be had. Sends nothing."""
    for name, place in settings.alerts.channels.items():
        of = "alerts"
        try:
            if place == LOG:
                yield Finding(of, f"{name}: the file {log_path(settings)}.")
                continue
            yield Finding(of, f"{name}: {_service(settings, name).service_name}, whose address {place} holds.")
        except SettingsError as error:
            yield Finding.of_error(of, error)


def _service(settings: Settings, name: str) -> apprise.NotifyBase:
    """The service of a channel.

    Raises:
        SettingsError: its address cannot be had, or is none that apprise knows.
    """
    place = settings.alerts.channels[name]
    address = resolve_secret(place, meaning=f"alerts.channels.{name}", host=settings.databricks_host)
    # What apprise logs of an address that it does not know is the address.
    quiet = logging.getLogger("apprise")
    level, quiet.level = quiet.level, logging.CRITICAL + 1
    try:
        service = apprise.Apprise.instantiate(address, suppress_exceptions=True)
    finally:
        quiet.level = level
    if not isinstance(service, apprise.NotifyBase):
        raise SettingsError(
            f"alerts.channels.{name} points to {place}, which holds no address that apprise knows.",
            "write one as https://appriseit.com/services says, for example a Slack webhook's, mailtos://… or jsons://….",
        )
    return service


def _write(path: Path, message: Message) -> None:
    if path.is_file() and path.stat().st_size > _LARGEST_LOG:
        path.replace(path.with_name(f"{path.name}.1"))
    text = f"{message.at:%F %T} UTC  {message.level:<8}  {message.title}\n"
    text += "".join(f"    {line}\n" for line in message.lines)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
