"""Events for the tests of this folder."""

from boltz_mesh.privacy.mechanisms import PrivacyEvent, release_event


def event(
    noise_multiplier: float = 4.0,
    client: str = "a",
    round: str = "r1",
    attempt: int = 1,
    *,
    distributed: bool = False,
    period: str = "",
) -> PrivacyEvent:
    return release_event(
        noise_multiplier=noise_multiplier,
        sensitivity=1000,
        model="m",
        round=round,
        attempt=attempt,
        client=client,
        distributed=distributed,
        period=period,
    )
