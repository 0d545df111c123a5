"""Run by script/deploy-check: holds deploy/ against the source and docs/OPERATIONS.md. Writes the dashboards' expressions as
rules to the file that is named, for promtool. Needs nothing but Python; with PyYAML it reads the manifests too."""

import json
import pathlib
import re
import sys

FAULTS = []
# Metrics that the rules wait for; they are told, and no fault, until the source has them.
COMING: set[str] = set()
# What Prometheus itself puts on a series.
GIVEN = {"job", "instance", "le", "alertname", "alertstate", "severity"}
# What the process may need beyond its own time to stop, before it is killed.
SPARE_S = 5


def read(path):
    return pathlib.Path(path).read_text(encoding="utf-8")


def hold(good, fault):
    if not good:
        FAULTS.append(fault)


OPERATIONS = read("docs/OPERATIONS.md")


def counted():
    """The metrics that the source counts, and which of them are histograms."""
    source = "".join(read(path) for src in ("src", "crates") for path in sorted(pathlib.Path(src).rglob("*.rs")))
    return set(re.findall(r'"(onrush_[a-z0-9_]+)"', source)), set(re.findall(r'histogram!\(\s*"(\w+)"', source))


def documented():
    """The labels of each metric, by the table of metrics."""
    labels = {}
    for names, its in re.findall(r"^\| (`onrush_[^|]*) \| ([^|]*)\|", OPERATIONS, re.MULTILINE):
        for name in re.findall(r"onrush_\w+", names):
            labels[name] = {label.strip() for label in its.split(",") if label.strip()}
    return labels


class Metrics:
    def __init__(self):
        self.names, self.histograms = counted()
        self.labels = documented()

    def base(self, name):
        """A histogram's series are named after it; itself is none."""
        for suffix in ("_bucket", "_sum", "_count"):
            if name.endswith(suffix) and name.removesuffix(suffix) in self.histograms:
                return name.removesuffix(suffix)
        return None if name in self.histograms else name

    def check(self, expression, where):
        for name, selector in re.findall(r"\b(onrush_\w+)(?:\{([^}]*(?:\{\w+\}[^}]*)*)\})?", expression):
            base = self.base(name)
            if base not in self.names:
                if base in COMING:
                    COMING_SEEN.add(base)
                else:
                    hold(False, f"{where}: nothing counts {name}")
                continue
            hold(base in self.labels, f"{where}: {base} is not in the table of metrics of docs/OPERATIONS.md")
            for label in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', selector):
                known = self.labels.get(base, set()) | GIVEN
                hold(label in known, f"{where}: {name} has no label {label}")
        known = GIVEN.union(*self.labels.values()) | {"server"}
        for labels in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", expression):
            for label in re.findall(r"\w+", labels):
                hold(label in known, f"{where}: no metric has the label {label}")


COMING_SEEN = set()


def without_comments(text):
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


def blocks(text, key):
    """Pieces of a YAML list whose items begin with this key, by its value."""
    pieces = re.split(rf"^ +- {key}: ", text, flags=re.MULTILINE)[1:]
    return [tuple(piece.split("\n", 1)) for piece in pieces]


def check_rules(metrics):
    rules = without_comments(read("deploy/prometheus/onrush.rules.yml"))
    metrics.check(rules, "rules")
    recorded = set(re.findall(r"record: (\S+)", rules))
    for name in set(re.findall(r"\bonrush:[\w:]+", rules)) - recorded:
        hold(False, f"rules: nothing records {name}")
    alerts = []
    for name, body in blocks(rules, "alert"):
        alerts.append(name)
        body = re.split(r"^  - name:", body, flags=re.MULTILINE)[0]
        hold(re.search(r"severity: (critical|warning|info)\}", body), f"{name}: no severity that we know")
        for annotation in ("summary", "description"):
            hold(re.search(rf"^ +{annotation}: \S", body, re.MULTILINE), f"{name}: no {annotation}")
        runbook = f"docs/OPERATIONS.md#{name.lower()}"
        hold(re.search(rf"^ +runbook: {runbook}$", body, re.MULTILINE), f"{name}: its runbook is not {runbook}")
    hold(len(alerts) == len(set(alerts)), "two alerts have one name")
    entries = re.findall(r"^#+ (Onrush\w+)$", OPERATIONS, re.MULTILINE)
    for name in sorted(set(alerts) ^ set(entries)):
        hold(False, f"{name}: an alert without an entry in the runbook, or an entry without an alert")
    return alerts


def check_tests(metrics, alerts):
    """Each alert is proved to be silent, to fire, and to be silent again."""
    tests = without_comments("\n".join(read(path) for path in sorted(pathlib.Path("deploy/prometheus").glob("*.test.yml"))))
    metrics.check(tests, "tests of rules")
    seen = set()
    for _, body in blocks(tests, "name"):
        for alert in set(re.findall(r'alertname="(\w+)"', body)):
            fires = re.findall(rf'alertname="{alert}".*exp_samples: \[(.?)', body)
            said = "".join("0" if first == "]" else "1" for first in fires)
            if re.fullmatch("0+1+0+", said):
                seen.add(alert)
            hold(alert in alerts, f"tests of rules: there is no alert {alert}")
    for alert in alerts:
        hold(alert in seen, f"{alert}: no test in which it is silent, fires, and is silent again")


def check_dashboard(metrics, path):
    dashboard = json.loads(read(path))
    ids, places, expressions = set(), set(), []
    hold(dashboard["uid"] == path.stem, f"{path}: its uid is not its file's name")
    hold(dashboard["schemaVersion"] >= 36, f"{path}: a schema older than Grafana 10's")
    hold(any(v["type"] == "datasource" for v in dashboard["templating"]["list"]), f"{path}: no variable for the data source")
    for panel in dashboard["panels"]:
        where = f"{path.name}: {panel['title']}"
        hold(panel["id"] not in ids, f"{where}: its id is another panel's too")
        ids.add(panel["id"])
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        hold(at["x"] + at["w"] <= 24 and not cells & places, f"{where}: lies over another panel, or outside")
        places |= cells
        if panel["type"] == "row":
            continue
        for target in [panel, *panel["targets"]]:
            hold(target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, f"{where}: a data source of its own")
        hold(panel["targets"], f"{where}: asks nothing")
        for target in panel["targets"]:
            metrics.check(target["expr"], where)
            expressions.append(target["expr"].replace("$__rate_interval", "5m"))
    return expressions


def check_manifests():
    text = {path.name: read(path) for path in sorted(pathlib.Path("deploy/kubernetes").glob("*.yaml"))}
    settings = dict(re.findall(r"^\| `((?:ONRUSH|DATABASE|REDIS)_\w+)`[^|]*\|\s*`?([^|`]*?)`?\s*\|", OPERATIONS, re.MULTILINE))
    for name in re.findall(r"^  ((?:ONRUSH|DATABASE|REDIS)_\w+):", text["config.yaml"], re.MULTILINE):
        hold(name.removesuffix("_FILE") in settings, f"config.yaml: there is no setting {name}")

    def number(pattern, of):
        found = re.search(pattern, without_comments(of))
        hold(found, f"deploy/: nothing there like {pattern}")
        return int(found[1]) if found else 0

    drain = number(r'DRAIN_S: "(\d+)"', text["config.yaml"])
    asleep = number(r"sleep: \{seconds: (\d+)\}", text["onrush.yaml"])
    grace = number(r"terminationGracePeriodSeconds: (\d+)", text["onrush.yaml"])
    hold(grace >= asleep + drain + SPARE_S, f"onrush.yaml: killed after {grace} s, and may take {asleep} + {drain} s")
    stop = number(r"TimeoutStopSec=(\d+)", read("deploy/systemd/onrush.service"))
    drain = int(settings.get("ONRUSH_HTTP__DRAIN_S", 0))
    hold(stop >= drain + SPARE_S, f"onrush.service: killed after {stop} s, and may take {drain} s")
    images = set(re.findall(r"image: (\S+)", "".join(text.values())))
    version = re.search(r'^version = "(.*)"', read("Cargo.toml"), re.MULTILINE)[1]
    hold(images and all(image.endswith(f":{version}") for image in images), f"an image of another version than {version}: {images}")
    try:
        import yaml
    except ImportError:
        print("deploy-check: NOT CHECKED: manifests as YAML: no PyYAML here", file=sys.stderr)
        return
    for name, manifest in text.items():
        try:
            documents = list(yaml.safe_load_all(manifest))
        except yaml.YAMLError as error:
            hold(False, f"{name}: {error}")
            continue
        for document in documents:
            hold({"apiVersion", "kind", "metadata"} <= set(document or {}), f"{name}: a document that is no object of Kubernetes")


metrics = Metrics()
check_tests(metrics, check_rules(metrics))
check_manifests()
groups = []
for path in sorted(pathlib.Path("deploy/grafana").glob("*.json")):
    found = check_dashboard(metrics, path)
    groups.append({"name": path.stem, "rules": [{"record": f"{path.stem.replace('-', '_')}:{n}", "expr": e} for n, e in enumerate(found)]})
pathlib.Path(sys.argv[1]).write_text(json.dumps({"groups": groups}), encoding="utf-8")
for name in sorted(COMING_SEEN):
    print(f"deploy-check: nothing counts {name} yet", file=sys.stderr)
for fault in FAULTS:
    print(f"deploy-check: {fault}", file=sys.stderr)
sys.exit(1 if FAULTS else 0)
