"""Patience: one fault is forgiven at once, repeated ones cost a wait, and nothing else matters.

Then how each fault is weighed, by exhaustion: every state of one, every reading. Last, properties
of whatever several sensors find, in whatever order.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.health import (
    PRESENCE,
    RULES,
    RULES_BY_SENSOR,
    Evidence,
    Fault,
    FaultCode,
    Health,
    History,
    Patience,
    Rule,
    Sensor,
    Severity,
    Standards,
    Track,
    Verdict,
    judge,
)
from tests.strategies import PATIENCE, PAUSES

WRONG = Fault(code=FaultCode.DEVNODE_MISSING, subject="x", message="is missing", remedy="look")

Look = tuple[float, bool]
"""When, and whether the device was well."""


def weigh(
    at: float, before: Verdict | None, *, well: bool, patience: Patience = PATIENCE
) -> Verdict:
    look = Evidence(sensor=Sensor.LOOK, at=at, faults=() if well else (WRONG,))
    return judge(
        "x",
        (look,),
        at=at,
        before=None if before is None else before.health,
        history=before.history if before else History(),
        standards=Standards(patience=patience),
    )


def verdicts(looks: list[Look], patience: Patience = PATIENCE) -> list[Verdict]:
    found: list[Verdict] = []
    for at, well in looks:
        found.append(weigh(at, found[-1] if found else None, well=well, patience=patience))
    return found


def told(looks: list[Look], patience: Patience = PATIENCE) -> str:
    """Spell the verdicts: `H` for healthy, `u` for unhealthy."""
    return "".join(
        "H" if verdict.health is Health.HEALTHY else "u" for verdict in verdicts(looks, patience)
    )


@st.composite
def rows(draw: st.DrawFn) -> list[Look]:
    at = draw(st.floats(-10, 1e6))
    looks = []
    for _ in range(draw(st.integers(1, 12))):
        looks.append((at, draw(st.booleans())))
        at += draw(st.sampled_from(PAUSES) | st.floats(0, 100))
    return looks


def patiences() -> st.SearchStrategy[Patience]:
    return st.builds(
        Patience,
        recovery_seconds=st.sampled_from([0.0, 5.0, 100.0]),
        flap_window_seconds=st.sampled_from([0.1, 5.0, 60.0]),
    )


@given(rows(), patiences())
def test_a_device_is_healthy_exactly_if_it_has_no_fault(
    looks: list[Look], patience: Patience
) -> None:
    for (_, well), verdict in zip(looks, verdicts(looks, patience), strict=True):
        assert (verdict.health is Health.HEALTHY) == (not verdict.faults)
        assert well or verdict.faults == (WRONG,)


@given(rows(), patiences())
def test_a_look_that_says_the_same_again_changes_nothing(
    looks: list[Look], patience: Patience
) -> None:
    found = verdicts(looks, patience)
    for (at, well), verdict in zip(looks, found, strict=True):
        assert weigh(at, verdict, well=well, patience=patience) == verdict


@given(rows(), patiences())
def test_a_review_is_due_exactly_while_a_device_recovers(
    looks: list[Look], patience: Patience
) -> None:
    for (at, _), verdict in zip(looks, verdicts(looks, patience), strict=True):
        recovers = [fault.code for fault in verdict.faults] == [FaultCode.RECOVERING]
        assert (verdict.review_at is not None) == recovers
        assert verdict.review_at is None or verdict.review_at > at


@given(rows(), patiences())
def test_the_review_finds_a_device_healthy_that_stayed_well(
    looks: list[Look], patience: Patience
) -> None:
    last = verdicts(looks, patience)[-1]
    if last.review_at is not None:
        reviewed = weigh(last.review_at, last, well=True, patience=patience)
        assert reviewed.health is Health.HEALTHY
        assert reviewed.history.since == last.review_at


@given(rows(), patiences())
def test_no_verdict_remembers_more_than_two_faults(looks: list[Look], patience: Patience) -> None:
    for verdict in verdicts(looks, patience):
        assert len(verdict.history.faulted_at) <= 2
        assert list(verdict.history.faulted_at) == sorted(verdict.history.faulted_at)


@given(rows(), patiences())
def test_health_is_dated_with_the_look_that_changed_it(
    looks: list[Look], patience: Patience
) -> None:
    found = verdicts(looks, patience)
    assert found[0].history.since == looks[0][0]
    for (before, after), (at, _) in zip(pairwise(found), looks[1:], strict=True):
        changed = before.health is not after.health
        assert after.history.since == (at if changed else before.history.since)


@given(st.lists(st.floats(0.01, 4.9), min_size=4, max_size=12))
def test_flapping_within_the_window_reads_as_one_transition_after_the_first(
    pauses: list[float],
) -> None:
    looks, at = [(0.0, True)], 0.0
    for n, pause in enumerate(pauses):
        at += pause  # at most 12 * 4.9 s, which is within the window
        looks.append((at, bool(n % 2)))
    assert told(looks) == "HuH" + "u" * (len(looks) - 3)


@given(rows(), patiences())
def test_who_faulted_twice_within_the_window_is_well_for_a_while_before_it_is_trusted(
    looks: list[Look], patience: Patience
) -> None:
    found = verdicts(looks, patience)
    faulted_at: list[float] = []
    well_since = looks[0][0]
    for ((_, was_well), before), ((at, well), after) in pairwise(zip(looks, found, strict=True)):
        if was_well and not well:
            faulted_at.append(at)
        if well and not was_well:
            well_since = at
        recovered = before.health is Health.UNHEALTHY and after.health is Health.HEALTHY
        if recovered and len(faulted_at) > 1:
            repeatedly = faulted_at[-1] - faulted_at[-2] < patience.flap_window_seconds
            waited = at >= well_since + patience.recovery_seconds
            assert waited or not repeatedly


def test_only_the_last_two_faults_are_remembered_however_fast_they_come() -> None:
    eager = Patience(recovery_seconds=0.0, flap_window_seconds=60.0)
    last = verdicts([(float(n), n % 2 == 0) for n in range(20)], eager)[-1]
    assert last.history.faulted_at == (17.0, 19.0)


def test_flapping_that_outlasts_the_window_is_still_flapping() -> None:
    # Ill and well by turns, each for two seconds, for ten minutes: never well for five seconds.
    looks = [(2.0 * n, n % 2 == 0) for n in range(300)]
    assert told(looks) == "HuH" + "u" * 297


def test_the_first_fault_counts_at_once_and_is_forgiven_at_once() -> None:
    assert told([(0.0, True), (1.0, False), (1.1, True), (1.2, True)]) == "HuHH"


def test_the_second_fault_within_the_window_costs_a_wait() -> None:
    looks = [(0, True), (1, False), (2, True), (30, False), (31, True), (35.9, True), (36, True)]
    assert told([(float(at), well) for at, well in looks]) == "HuHuuuH"
    recovering = verdicts(looks[:5])[-1]
    assert recovering.review_at == 36.0
    assert recovering.history.well_since == 31.0


def test_a_fault_long_after_the_first_is_a_first_one_again() -> None:
    assert told([(0.0, True), (1.0, False), (2.0, True), (61.0, False), (62.0, True)]) == "HuHuH"


def test_a_fault_while_recovering_starts_the_wait_anew() -> None:
    looks = [(0, True), (1, False), (2, True), (3, False), (4, True), (6, False), (7, True)]
    late = verdicts([(float(at), well) for at, well in looks])[-1]
    assert late.health is Health.UNHEALTHY
    assert late.review_at == 12.0


@pytest.mark.parametrize("peeked_at", [None, 59.9, 60.1, 62.0, 64.4])
def test_looking_in_between_does_not_shorten_the_wait(peeked_at: float | None) -> None:
    # The two faults lie within the window; that the older one leaves it meanwhile changes nothing.
    looks = [(0.0, True), (0.5, False), (1.0, True), (59.0, False), (59.5, True)]
    promised = verdicts(looks)[-1].review_at
    assert promised == 64.5
    if peeked_at is not None:
        assert told([*looks, (peeked_at, True)]) == "HuHuuu"
    assert told([*looks, (promised, True)]) == "HuHuuH"


@pytest.mark.parametrize("looks_while_ill", [(), (60.0, 61.0, 200.0)])
def test_a_long_second_fault_does_not_shorten_the_wait(looks_while_ill: tuple[float, ...]) -> None:
    # The faults began within the window; how long the second one lasts does not make it a first.
    looks = [(0.0, True), (0.5, False), (1.0, True), (59.0, False)]
    looks += [(at, False) for at in looks_while_ill]
    assert told([*looks, (300.0, True), (304.9, True), (305.0, True)])[-3:] == "uuH"


def test_a_device_that_begins_ill_is_trusted_as_soon_as_it_is_well() -> None:
    assert told([(0.0, False), (1.0, True)]) == "uH"


def test_without_a_wait_every_recovery_counts_at_once() -> None:
    eager = Patience(recovery_seconds=0.0, flap_window_seconds=60.0)
    assert told([(float(n), n % 2 == 0) for n in range(8)], eager) == "HuHuHuHu"


def test_who_waits_is_told_how_long_and_why() -> None:
    looks = [(0.0, True), (1.0, False), (2.0, True), (3.0, False), (4.0, True)]
    (fault,) = verdicts(looks)[-1].faults
    assert fault.code is FaultCode.RECOVERING
    assert fault.subject == "x"
    assert fault.since == 4.0
    assert "60 s" in fault.message
    assert "5 s" in fault.remedy


# --- one fault, by exhaustion: every state of it, every reading ----------------------------------

AT = 1000.0
"""When the look in question is made, and the newest reading with it."""

MOMENT = 0.25
"""Below or above a limit; a power of two, so that no sum is rounded."""

CODE = FaultCode.LINK_DEGRADED
"""It stands for any that is weighed: nothing is known of a fault but its rule."""

SENSOR, STRANGER = Sensor.VITALS, Sensor.QUERY
STRIKES, PATIENCE_SECONDS, RECOVERY_SECONDS = (1, 2, 3), (0.0, 10.0), (0.0, 20.0)

HEALTH_OF = {
    Severity.INFO: Health.HEALTHY,
    Severity.DEGRADED: Health.DEGRADED,
    Severity.UNKNOWN: Health.UNKNOWN,
    Severity.FATAL: Health.UNHEALTHY,
}


def fault(
    code: FaultCode = CODE, severity: Severity = Severity.FATAL, *, since: float = 0.0
) -> Fault:
    return Fault(code=code, subject="x", message="-", remedy="-", severity=severity, since=since)


def about(limit: float) -> tuple[float, ...]:
    """Name what is below, at and above a limit."""
    return (limit - MOMENT, limit, limit + MOMENT) if limit else (0.0, MOMENT)


def held_against(rules: Mapping[FaultCode, Rule]) -> Standards:
    return Standards(patience=PATIENCE, rules=rules)


def every_rule() -> Iterator[Rule]:
    for strikes, patience, recovery in product(STRIKES, PATIENCE_SECONDS, RECOVERY_SECONDS):
        yield Rule(
            severity=Severity.FATAL,
            strikes=strikes,
            patience_seconds=patience,
            recovery_seconds=recovery,
        )


def every_state(rule: Rule) -> Iterator[Track | None]:
    """Go through all that may be known of a fault: nothing; a suspicion; it counts; it is going."""
    yield None
    for strikes, age in product(range(1, rule.strikes + 2), about(rule.patience_seconds)):
        suspected = Track(
            sensor=SENSOR,
            fault=fault(since=AT - age),
            strikes=strikes,
            seen_at=AT - age / 2,
            stands=False,
        )
        yield suspected
        for well_seconds in (None, *about(rule.recovery_seconds)):
            well_since = None if well_seconds is None else AT - well_seconds
            yield replace(suspected, stands=True, well_since=well_since)


@dataclass(frozen=True, kw_only=True)
class Read:
    """One reading: of whom, how old, and what it says of the fault."""

    sensor: Sensor | None
    """None where nobody has read anything."""
    says: str = "absent"
    """`shown`, `absent` or `unread`."""
    older: float = 0.0
    """How much older than the look it is; the one before was older by 1."""

    @property
    def tells(self) -> bool:
        """Whether it is news, and of this fault."""
        return self.sensor is SENSOR and self.older < 1.0 and self.says != "unread"

    def evidence(self) -> tuple[Evidence, ...]:
        if self.sensor is None:
            return ()
        return (
            Evidence(
                sensor=self.sensor,
                at=AT - self.older,
                faults=(fault(),) if self.says == "shown" else (),
                unread=frozenset({CODE}) if self.says == "unread" else frozenset(),
            ),
        )


READS = (
    Read(sensor=None),
    *(Read(sensor=other) for other in Sensor if other is not SENSOR),
    *(
        Read(sensor=SENSOR, says=says, older=older)
        for says, older in product(("shown", "absent", "unread"), (0.0, *about(1.0)))
    ),
)


def known_before(track: Track | None) -> History:
    tracks = () if track is None else (track,)
    return History(tracks=tracks, weighed=((SENSOR, AT - 1.0), (STRANGER, AT - 1.0)))


def what_becomes(track: Track | None, read: Read, rule: Rule) -> Track | None:
    """Say in the fewest words what is documented: the measure of the code."""
    if not read.tells:
        return track
    at = AT - read.older
    if read.says == "absent":
        if track is None or not track.stands:
            return None
        well_since = at if track.well_since is None else track.well_since
        is_over = at - well_since >= rule.recovery_seconds
        return None if is_over else replace(track, well_since=well_since)
    since = at if track is None else track.fault.since
    strikes = 1 if track is None else track.strikes + (at > track.seen_at)
    is_due = strikes >= rule.strikes and at - since >= rule.patience_seconds
    return Track(
        sensor=SENSOR,
        fault=fault(since=since),
        strikes=strikes,
        seen_at=at,
        stands=is_due or (track is not None and track.stands),
    )


def test_a_fault_in_every_state_takes_every_reading_as_its_rule_says() -> None:
    cases = 0
    for rule in every_rule():
        standards = held_against({CODE: rule})
        for track, read in product(every_state(rule), READS):
            verdict = judge(
                "x",
                read.evidence(),
                at=AT,
                before=None,
                history=known_before(track),
                standards=standards,
            )
            expected = what_becomes(track, read, rule)
            told = (rule, track, read)
            assert verdict.history.tracks == (() if expected is None else (expected,)), told
            since = [found.fault.since for found in verdict.history.tracks]
            assert since == ([] if expected is None else [expected.fault.since]), told
            stands = expected is not None and expected.stands
            assert verdict.faults == ((fault(),) if stands else ()), told
            assert verdict.health is (Health.UNHEALTHY if stands else Health.HEALTHY), told
            cases += 1
    assert cases > 7_000


PASTS = tuple(
    product(
        ((), (AT - 30.0,), (AT - 30.0, AT - 20.0)),
        (None, *(AT - well_seconds for well_seconds in about(PATIENCE.recovery_seconds))),
    )
)
"""When a device lately turned unhealthy, and since when it has been well."""


def test_every_severity_makes_its_verdict_whatever_the_past_and_whoever_uses_the_device() -> None:
    cases = 0
    for severity, relief, in_use, before, (faulted_at, well_since), stands in product(
        Severity, (None, *Severity), (False, True), (None, *Health), PASTS, (True, False)
    ):
        track = Track(
            sensor=SENSOR, fault=fault(since=AT - 9), strikes=1, seen_at=AT - 9, stands=stands
        )
        verdict = judge(
            "x",
            (),
            at=AT,
            before=before,
            history=replace(
                known_before(track), faulted_at=faulted_at, well_since=well_since, since=1.0
            ),
            standards=held_against({CODE: Rule(severity=severity, severity_in_use=relief)}),
            in_use=in_use,
        )
        weight = relief if in_use and relief is not None else severity
        deserved = HEALTH_OF[weight] if stands else Health.HEALTHY
        trusted_at = (AT if well_since is None else well_since) + PATIENCE.recovery_seconds
        waits = (
            before is Health.UNHEALTHY
            and deserved is not Health.UNHEALTHY
            and len(faulted_at) > 1
            and trusted_at > AT
        )
        told = (severity, relief, in_use, before, faulted_at, well_since, stands)
        assert verdict.health is (Health.UNHEALTHY if waits else deserved), told
        assert verdict.review_at == (trusted_at if waits else None), told
        found = [(f.code, f.severity) for f in verdict.faults]
        distrust = [(FaultCode.RECOVERING, Severity.FATAL)] if waits else []
        assert found == distrust + ([(CODE, weight)] if stands else []), told
        assert verdict.history.since == (1.0 if before is verdict.health else AT), told
        assert verdict.history.tracks == (track,), told
        cases += 1
    assert cases == 4 * 5 * 2 * 5 * len(PASTS) * 2


@pytest.mark.parametrize("code", sorted(RULES), ids=str)
def test_by_default_a_fault_counts_at_its_last_strike_weighs_what_it_should_and_goes(
    code: FaultCode,
) -> None:
    rule = RULES[code]
    (sensor,) = (sensor for sensor, rules in RULES_BY_SENSOR.items() if code in rules)
    verdict = Verdict(health=Health.HEALTHY, faults=(), history=History())

    def read(at: float, *, shown: bool, in_use: bool = False) -> Verdict:
        return judge(
            "x",
            (Evidence(sensor=sensor, at=at, faults=(fault(code),) if shown else ()),),
            at=at,
            before=verdict.health,
            history=verdict.history,
            standards=Standards(patience=PATIENCE),
            in_use=in_use,
        )

    for n in range(1, rule.strikes):
        verdict = read(float(n), shown=True)
        assert (verdict.health, verdict.faults) == (Health.HEALTHY, ())
    used = read(float(rule.strikes), shown=True, in_use=True)
    assert [f.severity for f in used.faults] == [rule.severity_in_use or rule.severity]
    verdict = read(float(rule.strikes), shown=True)
    assert [f.severity for f in verdict.faults] == [rule.severity]
    assert verdict.health is HEALTH_OF[rule.severity]
    if rule.recovery_seconds:
        for at in (10.0, 10.0 + rule.recovery_seconds - MOMENT):
            verdict = read(at, shown=False)
            assert [f.code for f in verdict.faults] == [code]
    verdict = read(10.0 + rule.recovery_seconds, shown=False)
    assert (verdict.health, verdict.faults) == (Health.HEALTHY, ())


@pytest.mark.parametrize("sensor", Sensor)
@pytest.mark.parametrize("code", sorted(set(FaultCode) - set(RULES)), ids=str)
def test_what_has_no_rule_of_its_own_takes_a_device_away_at_once(
    code: FaultCode, sensor: Sensor
) -> None:
    verdict = judge(
        "x",
        (Evidence(sensor=sensor, at=AT, faults=(fault(code, Severity.INFO),)),),
        at=AT,
        before=Health.HEALTHY,
        history=History(),
        standards=Standards(patience=PATIENCE),
        in_use=True,
    )
    assert verdict.health is Health.UNHEALTHY
    assert verdict.faults == (fault(code, Severity.FATAL),)
    assert Rule(severity=Severity.FATAL) == PRESENCE


def test_no_fault_has_two_rules() -> None:
    assert len(RULES) == sum(map(len, RULES_BY_SENSOR.values()))


def test_a_device_may_be_handed_out_by_its_health_and_of_the_unknown_by_policy() -> None:
    offering, withholding = (
        Standards(patience=PATIENCE, offers_unknown=offers) for offers in (True, False)
    )
    assert [offering.permits(health) for health in Health] == [True, True, True, False]
    assert [withholding.permits(health) for health in Health] == [True, True, False, False]


# --- several faults of several sensors -----------------------------------------------------------

WEIGHED = {
    Sensor.VITALS: (FaultCode.PCI_DEAD, FaultCode.LINK_DEGRADED),
    Sensor.QUERY: (FaultCode.FIRMWARE_HUNG, FaultCode.TEMPERATURE_HIGH),
    Sensor.NOTIFICATION: (FaultCode.NOTIFIED_DATAFLOW, FaultCode.NOTIFIED_ECC),
}
"""Sensors, and two faults of each; how they are weighed is drawn."""

AWAY = FaultCode.VANISHED

NEW = 0.125
"""How much later than the look a reading is that is newer than any other."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call of `judge`: when, with which evidence, and how the device is there and used."""

    at: float
    evidence: tuple[Evidence, ...]
    present_since: float
    in_use: bool = False


Lived = tuple[Verdict | None, Step, Verdict]
"""What was held before, the step, and what is held after it."""


@dataclass(frozen=True, kw_only=True)
class Life:
    """What happened to one device, and what it is held against."""

    standards: Standards
    steps: tuple[Step, ...]

    def weigh(self, before: Verdict | None, step: Step) -> Verdict:
        return judge(
            "x",
            step.evidence,
            at=step.at,
            before=None if before is None else before.health,
            history=History() if before is None else before.history,
            standards=self.standards,
            in_use=step.in_use,
            present_since=step.present_since,
        )

    def lived(self) -> Iterator[Lived]:
        before = None
        for step in self.steps:
            after = self.weigh(before, step)
            yield before, step, after
            before = after


def with_more(step: Step, *more: Evidence) -> Step:
    return replace(step, evidence=(*step.evidence, *more))


RULES_TO_DRAW = st.sampled_from(
    [
        Rule(
            severity=severity,
            strikes=strikes,
            patience_seconds=patience,
            recovery_seconds=recovery,
            severity_in_use=relief,
        )
        for severity, strikes, patience, recovery, relief in product(
            Severity, (1, 1, 2, 3), (0.0, 0.0, 4.0), (0.0, 0.0, 6.0), (None, None, *Severity)
        )
    ]
)
WORDS = st.sampled_from([*product(("shown", "absent", "unread"), repeat=2)])


def saying(sensor: Sensor, words: tuple[str, ...], at: float) -> Evidence:
    """One reading of a sensor, which says this of its two faults."""
    of = dict(zip(WEIGHED[sensor], words, strict=True))
    return Evidence(
        sensor=sensor,
        at=at,
        faults=tuple(fault(code) for code, word in of.items() if word == "shown"),
        unread=frozenset(code for code, word in of.items() if word == "unread"),
    )


def word_of(sensor: Sensor, code: FaultCode | None, at: float) -> Evidence:
    return Evidence(sensor=sensor, at=at, faults=() if code is None else (fault(code),))


LOOKS = st.sampled_from([None] * 6 + [FaultCode.DEVNODE_MISSING, AWAY])
ORDERS = st.sampled_from([None] * 5 + [FaultCode.CORDONED])
AGES = st.sampled_from([(), (0.0,), (0.0,), (3.0,), (0.5, 7.0), (0.0, 0.5)])
SWAPS = st.sampled_from([False] * 9 + [True])


@st.composite
def lives(draw: st.DrawFn) -> Life:
    """Any life of one slot: readings are late, missing, or several at once; cards come and go."""
    codes = [code for codes in WEIGHED.values() for code in codes]
    at = present_since = draw(st.sampled_from([0.0, AT]))
    steps = []
    for _ in range(draw(st.integers(1, 6))):
        look = draw(LOOKS)
        if look is AWAY:
            present_since = inf
        elif present_since == inf or draw(SWAPS):
            present_since = at  # it is back, or another card was put in unnoticed
        evidence = [word_of(Sensor.LOOK, look, at), word_of(Sensor.OPERATOR, draw(ORDERS), at)]
        for sensor in WEIGHED:
            evidence += [saying(sensor, draw(WORDS), at - age) for age in draw(AGES)]
        steps.append(
            Step(
                at=at,
                evidence=tuple(evidence),
                present_since=present_since,
                in_use=draw(st.booleans()),
            )
        )
        at += draw(st.sampled_from([0.0, 0.5, 2.0, 4.0, 7.0, 70.0]))
    rules = {code: draw(RULES_TO_DRAW) for code in codes}
    return Life(standards=held_against(rules), steps=tuple(steps))


def standing(verdict: Verdict) -> set[tuple[Sensor, FaultCode]]:
    return {(track.sensor, track.fault.code) for track in verdict.history.tracks if track.stands}


def of_others(verdict: Verdict, sensor: Sensor) -> list[Track]:
    return [track for track in verdict.history.tracks if track.sensor is not sensor]


def opinion(verdict: Verdict) -> tuple[object, ...]:
    """Say what is held of a device, but not which readings that rests on."""
    return verdict.health, verdict.faults, verdict.review_at, verdict.history.tracks


@given(lives())
def test_the_same_evidence_weighed_again_changes_nothing(life: Life) -> None:
    for _, step, verdict in life.lived():
        assert life.weigh(verdict, step) == verdict


@given(lives(), st.integers(0, 1 << 16))
def test_the_order_of_evidence_does_not_matter(life: Life, seed: int) -> None:
    random = Random(seed)
    for before, step, verdict in life.lived():
        shuffled = random.sample(step.evidence, len(step.evidence))
        assert life.weigh(before, replace(step, evidence=tuple(shuffled))) == verdict


@given(lives())
def test_readings_weighed_one_by_one_find_what_they_find_together(life: Life) -> None:
    for before, step, verdict in life.lived():
        one_by_one = before
        for reading in sorted(step.evidence, key=lambda reading: reading.at):
            one_by_one = life.weigh(one_by_one, replace(step, evidence=(reading,)))
        assert one_by_one is not None
        assert one_by_one.history.tracks == verdict.history.tracks
        assert one_by_one.history.weighed == verdict.history.weighed


@given(lives())
def test_the_worst_that_stands_is_the_verdict(life: Life) -> None:
    for _, step, verdict in life.lived():
        found = []
        for track in verdict.history.tracks:
            rule = life.standards.of(track.fault.code)
            relief = rule.severity_in_use if step.in_use else None
            found += [HEALTH_OF[relief or rule.severity].rank] if track.stands else []
        told = [f.severity.health.rank for f in verdict.faults if is_found(f)]
        assert told == sorted(found, reverse=True)
        if all(map(is_found, verdict.faults)):
            assert verdict.health.rank == max(found, default=0)
        else:
            assert verdict.faults[0].code is FaultCode.RECOVERING
            assert verdict.health is Health.UNHEALTHY


def is_found(fault: Fault) -> bool:
    """Tell what a sensor found from what the past makes of it."""
    return fault.code is not FaultCode.RECOVERING


@given(lives())
def test_an_unseen_device_is_never_healthy(life: Life) -> None:
    for _, step, verdict in life.lived():
        shown = {f.code for reading in step.evidence for f in reading.faults}
        for code in shown - set(RULES):
            assert verdict.health is Health.UNHEALTHY
            assert code in {f.code for f in verdict.faults}


@given(lives())
def test_missing_data_is_neither_failure_nor_cure(life: Life) -> None:
    for before, step, verdict in life.lived():
        blind = [
            Evidence(sensor=sensor, at=step.at + NEW, unread=frozenset(codes))
            for sensor, codes in WEIGHED.items()
        ]
        assert opinion(life.weigh(before, with_more(step, *blind))) == opinion(verdict)


@given(lives())
def test_a_sensor_neither_clears_nor_confirms_what_another_one_found(life: Life) -> None:
    for before, step, verdict in life.lived():
        for sensor, codes in WEIGHED.items():
            foreign = {code for others in WEIGHED.values() for code in others} - set(codes)
            for faults in ((), tuple(map(fault, codes)), tuple(map(fault, sorted(foreign)))):
                more = Evidence(sensor=sensor, at=step.at + NEW, faults=faults)
                other = life.weigh(before, with_more(step, more))
                assert of_others(other, sensor) == of_others(verdict, sensor)


LATENESS = st.sampled_from([0.0, 9.0])


@given(lives(), st.data())
def test_a_late_reading_changes_nothing(life: Life, data: st.DataObject) -> None:
    newest: dict[Sensor, float] = {}
    for _, step, verdict in life.lived():
        for reading in step.evidence:
            if reading.at >= step.present_since:
                newest[reading.sensor] = max(reading.at, newest.get(reading.sensor, reading.at))
        for sensor in WEIGHED.keys() & newest.keys():
            late = saying(sensor, data.draw(WORDS), newest[sensor] - data.draw(LATENESS))
            again = replace(step, evidence=(*step.evidence[:2], late))
            assert life.weigh(verdict, again) == verdict


@given(lives(), st.data())
def test_what_was_read_before_a_card_was_there_says_nothing_of_it(
    life: Life, data: st.DataObject
) -> None:
    for before, step, verdict in life.lived():
        at = step.at if step.present_since == inf else step.present_since - NEW
        of_the_other = [saying(sensor, data.draw(WORDS), at) for sensor in WEIGHED]
        assert life.weigh(before, with_more(step, *of_the_other)) == verdict


@pytest.mark.parametrize("present_since", [AT - MOMENT, AT, AT + MOMENT, inf])
def test_a_card_is_read_from_the_moment_on_that_it_is_there(present_since: float) -> None:
    life = Life(standards=held_against({CODE: Rule(severity=Severity.FATAL)}), steps=())
    shown = Read(sensor=SENSOR, says="shown").evidence()
    verdict = life.weigh(None, Step(at=AT, evidence=shown, present_since=present_since))
    assert bool(verdict.faults) == (present_since <= AT)


def test_a_sensor_may_know_better_since_when_something_is_wrong() -> None:
    rule = Rule(severity=Severity.FATAL, patience_seconds=60.0)
    life = Life(standards=held_against({CODE: rule}), steps=())
    for since in (AT - 60.0, AT - 60.0 + MOMENT):
        shown = Evidence(sensor=SENSOR, at=AT, faults=(fault(since=since),))
        verdict = life.weigh(None, Step(at=AT, evidence=(shown,), present_since=0.0))
        assert [f.since for f in verdict.faults] == ([since] if since == AT - 60.0 else [])


@given(lives())
def test_what_was_found_out_about_a_card_that_went_is_void(life: Life) -> None:
    for _, step, verdict in life.lived():
        at = step.at + 1.0
        back = Step(at=at, present_since=at, evidence=(word_of(Sensor.LOOK, None, at),))
        ordered = {key for key in standing(verdict) if key[0] is Sensor.OPERATOR}
        assert standing(life.weigh(verdict, back)) == ordered
        gone = Step(at=at, present_since=inf, evidence=(word_of(Sensor.LOOK, AWAY, at),))
        away = life.weigh(verdict, gone)
        assert standing(away) == {*ordered, (Sensor.LOOK, AWAY)}
        assert away.health is Health.UNHEALTHY


@given(lives())
def test_nothing_is_cured_by_time(life: Life) -> None:
    for _, step, verdict in life.lived():
        later = replace(step, at=step.at + 1e6, evidence=())
        assert standing(life.weigh(verdict, later)) == standing(verdict)


@given(lives())
def test_whoever_uses_a_device_changes_what_faults_weigh_and_not_what_they_are(life: Life) -> None:
    for before, step, verdict in life.lived():
        other = life.weigh(before, replace(step, in_use=not step.in_use))
        assert other.history.tracks == verdict.history.tracks
        found = [{f.code for f in v.faults if is_found(f)} for v in (other, verdict)]
        assert found[0] == found[1]


# --- what is shown only now and then -------------------------------------------------------------


@st.composite
def flaps(draw: st.DrawFn) -> tuple[Rule, list[tuple[float, str]]]:
    """A rule that asks for patience, and readings in which the fault never lasts long enough."""
    strikes, patience = draw(st.sampled_from([(2, 0.0), (3, 0.0), (1, 8.0), (3, 8.0)]))
    rule = Rule(
        severity=draw(st.sampled_from(Severity)), strikes=strikes, patience_seconds=patience
    )
    at, found = AT, []
    for _ in range(draw(st.integers(1, 5))):
        is_short = not patience or (strikes > 1 and draw(st.booleans()))
        times = draw(st.integers(1, strikes - 1)) if is_short else draw(st.integers(1, 6))
        pause = draw(st.sampled_from([1.0, 60.0])) if is_short else (patience - MOMENT) / times
        for _ in range(times):
            found.append((at, "shown"))
            at += pause
            if draw(st.booleans()):
                found.append((at - pause / 2, "unread"))
        found.append((at, "absent"))
        at += 1.0
    return rule, found


@given(flaps())
def test_what_flaps_below_its_patience_changes_nothing(
    flapping: tuple[Rule, list[tuple[float, str]]],
) -> None:
    rule, found = flapping
    health, history = Health.HEALTHY, History(since=1.0)
    for at, says in found:
        verdict = judge(
            "x",
            [replace(e, at=at) for e in Read(sensor=SENSOR, says=says).evidence()],
            at=at,
            before=health,
            history=history,
            standards=held_against({CODE: rule}),
        )
        health, history = verdict.health, verdict.history
        assert (health, verdict.faults, verdict.review_at) == (Health.HEALTHY, (), None)
        assert (history.since, history.faulted_at) == (1.0, ())


@given(st.integers(1, 4), st.sampled_from([0.0, 3.0, 10.0]), st.lists(st.booleans(), max_size=12))
def test_what_lasts_counts_as_soon_as_both_strikes_and_patience_are_used_up(
    strikes: int, patience: float, blind: list[bool]
) -> None:
    rule = Rule(severity=Severity.FATAL, strikes=strikes, patience_seconds=patience)
    health, history = Health.HEALTHY, History()
    shown_at: list[float] = []
    for n, is_blind in enumerate([False, *blind]):
        at = AT + 2.0 * n
        says = "unread" if is_blind else "shown"
        shown_at += [] if is_blind else [at]
        verdict = judge(
            "x",
            [replace(e, at=at) for e in Read(sensor=SENSOR, says=says).evidence()],
            at=at,
            before=health,
            history=history,
            standards=held_against({CODE: rule}),
        )
        health, history = verdict.health, verdict.history
        is_due = len(shown_at) >= strikes and shown_at[-1] - shown_at[0] >= patience
        assert health is (Health.UNHEALTHY if is_due else Health.HEALTHY)
        assert [f.since for f in verdict.faults] == ([AT] if is_due else [])


def test_flapping_that_counts_each_time_is_one_transition() -> None:
    # Dead for two readings, then well for one: the window of its own, and then the device's.
    rule = Rule(severity=Severity.FATAL, strikes=2)
    health, history, told = Health.HEALTHY, History(), ""
    for n in range(60):
        (reading,) = Read(sensor=SENSOR, says="absent" if n % 3 == 2 else "shown").evidence()
        verdict = judge(
            "x",
            (replace(reading, at=AT + n),),
            at=AT + n,
            before=health,
            history=history,
            standards=held_against({CODE: rule}),
        )
        health, history = verdict.health, verdict.history
        told += "H" if health is Health.HEALTHY else "u"
    assert told == "HuHH" + "u" * 56


# --- a device in use -----------------------------------------------------------------------------

BUSY = (
    FaultCode.FIRMWARE_HUNG,
    FaultCode.QUERY_HUNG,
    FaultCode.QUERY_SLOW,
    FaultCode.QUERY_FAILED,
)
"""What work may make of a device that is well."""


@given(st.lists(st.tuples(st.sets(st.sampled_from(BUSY)), st.booleans()), max_size=20))
def test_a_device_in_use_is_never_condemned_because_it_answers_late_or_not(
    readings: list[tuple[set[FaultCode], bool]],
) -> None:
    health, history = Health.HEALTHY, History()
    for n, (codes, in_use) in enumerate(readings):
        found = tuple(map(fault, sorted(codes)))
        verdict = judge(
            "x",
            (Evidence(sensor=Sensor.QUERY, at=AT + n, faults=found),),
            at=AT + n,
            before=health,
            history=history,
            standards=Standards(patience=PATIENCE),
            in_use=in_use,
        )
        if in_use:
            assert all(
                f.severity.health.rank <= Health.DEGRADED.rank
                for f in verdict.faults
                if is_found(f)
            )
            assert health is Health.UNHEALTHY or verdict.health is not Health.UNHEALTHY
        health, history = verdict.health, verdict.history


@pytest.mark.parametrize("code", BUSY, ids=str)
def test_the_same_in_an_idle_device_is_taken_seriously(code: FaultCode) -> None:
    health, history = Health.HEALTHY, History()
    for n in range(RULES[code].strikes):
        verdict = judge(
            "x",
            (Evidence(sensor=Sensor.QUERY, at=AT + n, faults=(fault(code),)),),
            at=AT + n,
            before=health,
            history=history,
            standards=Standards(patience=PATIENCE),
        )
        health, history = verdict.health, verdict.history
    relief = RULES[code].severity_in_use
    assert relief is not None
    assert health.rank > HEALTH_OF[relief].rank
