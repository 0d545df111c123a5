"""Run by script/crontab-against-celery: the comparison itself."""

import random
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

from celery import Celery
from celery.schedules import crontab

ZONES = ["UTC", "Asia/Shanghai", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]
FIELDS = [(0, 59, []), (0, 23, []), (1, 31, []),
          (1, 12, "jan feb mar apr may jun jul aug sep oct nov dec".split()),
          (0, 6, "sun mon tue wed thu fri sat".split())]
# What happens around a change of the clock is our own choice (crates/engine/src/schedule/calendar.rs), not Celery's.
NEAR_A_CHANGE = timedelta(hours=26)
APP = Celery(set_as_current=False)


def value(low, high, names):
    if names and random.random() < 0.3:
        name = random.choice(names)
        return name.upper() if random.random() < 0.2 else name
    # Now and then one that is out of range.
    if random.random() < 0.01:
        return str(random.choice([high + 1, high + 40, max(low - 1, 0)]))
    return f"{random.randint(low, high):0{random.choice([1, 1, 1, 2])}d}"


def part(low, high, names):
    kind = random.random()
    step = f"/{random.randint(1, high + 2)}"
    if kind < 0.25:
        return "*" + step
    if kind < 0.5:
        return f"{value(low, high, names)}-{value(low, high, names)}" + (step if random.random() < 0.5 else "")
    if kind < 0.53:
        return random.choice(["*/0", "*/", "", "x", "1-", "-1", "5/2"])
    return value(low, high, names)


def expression():
    def field(at, low, high, names):
        # Days that rarely meet make long searches: enough of them, not only them.
        if random.random() < (0.3 if at < 2 else 0.6):
            return "*"
        return ",".join(part(low, high, names) for _ in range(random.choice([1, 1, 2, 4])))
    return " ".join(field(at, *bounds) for at, bounds in enumerate(FIELDS))


def instant():
    start = datetime(2001, 1, 1, tzinfo=timezone.utc)
    seconds = random.randrange(60 * 366 * 86400)
    # Instants on a whole minute, where a run may be due just then, are as many as the others.
    return start + timedelta(seconds=seconds - seconds % 60 if random.random() < 0.5 else seconds)


def near_a_change(at, zone):
    return len({(at + shift).astimezone(zone).utcoffset() for shift in (-NEAR_A_CHANGE, timedelta(), NEAR_A_CHANGE)}) > 1


def by_celery(text, at, zone):
    try:
        schedule = parse(text, at)
    except Exception as error:  # It raises whatever it meets: ValueError, IndexError, its own.
        return None, f"{type(error).__name__}: {error}"
    schedule.__dict__["tz"] = zone
    fields = [schedule.minute, schedule.hour, schedule.day_of_month, schedule.month_of_year, schedule.day_of_week]
    values = "|".join(",".join(map(str, sorted(field))) for field in fields)
    return values, at + schedule.remaining_estimate(at)


def parse(text, at):
    minute, hour, day_of_month, month_of_year, day_of_week = text.split(" ")
    return crontab(minute, hour, day_of_week, day_of_month, month_of_year, nowfun=lambda: at, app=APP)


def main():
    onrush, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20000
    seed = sys.argv[3] if len(sys.argv) > 3 else str(random.SystemRandom().randrange(10**9))
    random.seed(seed)
    cases = [(expression(), instant(), random.choice(ZONES)) for _ in range(count)]
    lines = "".join(f"{text}\t{at.isoformat()}\t{zone}\n" for text, at, zone in cases)
    ours = subprocess.run([onrush, "crontab", "--batch"], input=lines, capture_output=True, text=True, check=True)
    answers = ours.stdout.splitlines()
    assert len(answers) == count, f"{len(answers)} answers to {count} lines"
    refused = compared = passed_over = different = 0
    for (text, at, zone_name), answer in zip(cases, answers):
        zone = ZoneInfo(zone_name)
        fields, next_run = by_celery(text, at, zone)
        our_fields, our_next = answer.split("\t")
        if fields is None:
            refused += 1
            same = our_fields == "error"
        elif our_fields != fields:
            same = False
        else:
            our_run = datetime.fromisoformat(our_next)
            if any(near_a_change(moment, zone) for moment in (at, our_run, next_run)):
                passed_over += 1
                continue
            compared += 1
            same = our_run == next_run
        if not same:
            different += 1
            if different <= 20:
                print(f"{text!r} after {at.isoformat()} in {zone_name}\n  celery {fields} {next_run}\n  onrush {answer}")
    print(f"seed {seed}: {compared} next runs compared, {refused} refused by both or one, "
          f"{passed_over} near a change of the clock passed over, {different} differences")
    # A comparison that compares nothing proves nothing.
    return 1 if different or compared < count // 3 else 0


if __name__ == "__main__":
    sys.exit(main())
