//! What a stream's declaration may become, and what stands beside it.

use super::file;
use crate::{Known, Project, check, evolve, known_with, render_all};

const FIRST: &str = "CREATE STREAM telemetry (
  temperature FLOAT OPTIONS (id = 1, unit = 'Cel', range = '-40..125'),
  rpm BIGINT OPTIONS (id = 2, scale = -1),
  state ENUM('on', 'off') OPTIONS (id = 3)
) WITH (version = '1.0');";

fn project(text: &str) -> Project {
    check(&[file("s.sql", text)]).unwrap_or_else(|found| panic!("{}", render_all(&found, &[file("s.sql", text)])))
}

fn known() -> Vec<Known> {
    known_with(&[], &project(FIRST))
}

/// `line: message | help` of everything that is refused when `text` follows upon [`FIRST`].
fn refused(text: &str) -> Vec<String> {
    let found = evolve(&known(), &project(text));
    found.iter().map(|d| format!("{}: {} | {}", d.line, d.message, d.help.clone().unwrap_or_default())).collect()
}

/// [`FIRST`] with replacements.
fn with(changes: &[(&str, &str)]) -> String {
    changes.iter().fold(FIRST.to_owned(), |text, (old, new)| {
        assert!(text.contains(old), "{old}");
        text.replacen(old, new, 1)
    })
}

const NEXT: (&str, &str) = ("'1.0'", "'1.1'");

/// What a minor version may change.
const ALLOWED: [(&str, &str, &str); 6] = [
    ("FLOAT", "DOUBLE", "`temperature` is DOUBLE instead of FLOAT"),
    ("'on', 'off'", "'on', 'off', 'fault'", "`state` may be 'fault'"),
    ("ENUM('on', 'off')", "TEXT", "`state` may be any text"),
    ("-40..125", "-40..150", "the range of `temperature` was -40..125 and is -40..150"),
    (", range = '-40..125'", "", "the range of `temperature` was -40..125 and is any"),
    ("\n) WITH", ",\n  humidity DOUBLE OPTIONS (id = 4)\n) WITH", "`humidity` is new"),
];

#[test]
fn a_minor_version_only_gains() {
    assert_eq!(refused(FIRST), Vec::<String>::new());
    for (old, new, _) in ALLOWED {
        assert_eq!(refused(&with(&[(old, new), NEXT])), Vec::<String>::new(), "{new}");
    }
    let all = ALLOWED.map(|(old, new, _)| (old, new));
    assert_eq!(refused(&with(&[all[0], all[1], all[3], all[5], ("'1.0'", "'1.7'")])), Vec::<String>::new());
    // Neither order, comments, options of the table, nor a version without changes matter.
    assert!(refused(&with(&[("unit = 'Cel', ", ""), ("id = 1,", "unit = 'Cel', id = 1,"), NEXT])).is_empty());
    let moved = "CREATE STREAM telemetry (
      state ENUM('off', 'on') OPTIONS (id = 3) COMMENT 'new', rpm BIGINT OPTIONS (id = 2, scale = -1),
      temperature FLOAT OPTIONS (id = 1, unit = 'Cel', range = '-40..125')) WITH (partition = 'day');";
    assert_eq!(refused(moved), Vec::<String>::new());
}

#[test]
fn what_is_gained_takes_a_minor_version() {
    for (old, new, what) in ALLOWED {
        let found = refused(&with(&[(old, new)]));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains(what) && found[0].ends_with("| write WITH (version = '1.1')"), "{new}: {found:?}");
    }
}

#[test]
fn what_takes_a_major_version() {
    for (old, new, line, what) in [
        ("  rpm BIGINT OPTIONS (id = 2, scale = -1),\n", "", 1, "`rpm` (id 2) is gone | keep `rpm`"),
        ("rpm", "speed", 3, "id 2 was `rpm` and is `speed`: an id is never used again"),
        ("id = 2", "id = 9", 3, "the id of `rpm` was 2 and is 9 | give it id = 2"),
        ("BIGINT", "DOUBLE", 3, "the type of `rpm` was BIGINT and is DOUBLE"),
        ("'Cel'", "'K'", 2, "the unit of `temperature` was 'Cel' and is 'K'"),
        ("unit = 'Cel', ", "", 2, "the unit of `temperature` was 'Cel' and is none"),
        ("scale = -1", "scale = -2", 3, "the scale of `rpm` was -1 and is -2"),
        ("'on', 'off'", "'on'", 4, "`state` may no longer be 'off'"),
        ("-40..125", "-40..100", 2, "the range of `temperature` was -40..125 and is -40..100"),
    ] {
        for version in ["'1.0'", "'1.1'"] {
            let found = refused(&with(&[(old, new), ("'1.0'", version)]));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with(&format!("{line}: {what}")), "{found:?}");
            assert!(found[0].contains("CREATE STREAM telemetry (..) WITH (version = '2.0')"), "{found:?}");
        }
    }
    // Without ids they follow from the order, and move with it.
    let plain = known_with(&[], &project("CREATE STREAM a (x DOUBLE, y TEXT);"));
    let found = evolve(&plain, &project("CREATE STREAM a (w BIGINT, x DOUBLE, y TEXT) WITH (version = '1.1');"));
    assert!(found.iter().any(|d| d.message.starts_with("id 1 was `x` and is `w`")), "{found:?}");
}

#[test]
fn versions_do_not_go_back() {
    let text = "CREATE STREAM telemetry (x DOUBLE) WITH (version = '3.4');";
    let known = known_with(&[], &project(text));
    let says = |text: &str| -> Vec<String> {
        let found = evolve(&known, &project(text));
        found.iter().map(|d| format!("{} | {}", d.message, d.help.clone().unwrap_or_default())).collect()
    };
    let back = says("CREATE STREAM telemetry (x DOUBLE) WITH (version = '3.3');");
    assert_eq!(
        back,
        ["version 3.3 of `telemetry` goes back: 3.4 counts already | write version = '3.4', with all its fields"]
    );
    let lower = says("CREATE STREAM telemetry (x DOUBLE) WITH (version = '2.0');");
    assert!(lower[0].contains("comes before version 3") && lower[0].contains("'4.0'"), "{lower:?}");
    let alone = says("CREATE STREAM telemetry (y TEXT) WITH (version = '4.0');");
    assert!(alone[0].starts_with("version 3 of `telemetry` is gone"), "{alone:?}");
    let other = says("CREATE STREAM telemetry (x DOUBLE) WITH (version = '3.4', schema = 5);");
    assert_eq!(other, ["the schema id of `telemetry` was 1 and is 5 | frames name the stream by it: write schema = 1"]);
    // Gone altogether, it stays known.
    let without = project("CREATE STREAM other (z DOUBLE) WITH (schema = 9);");
    assert!(evolve(&known, &without).is_empty());
    let later = known_with(&known, &without);
    assert_eq!(evolve(&later, &project("CREATE STREAM telemetry (y TEXT) WITH (version = '3.5');")).len(), 1);
    // A stream that was never declared has promised nothing.
    assert!(known_with(&[], &Project::empty()).is_empty());
}

const BOTH: &str = "CREATE STREAM telemetry (x DOUBLE) WITH (version = '1.4');
CREATE STREAM telemetry (x TEXT) WITH (version = '2.0');
CREATE PIPELINE p AS SELECT ts, x FROM telemetry_v2;";

#[test]
fn major_versions_stand_beside_each_other() {
    let project = project(BOTH);
    let names: Vec<_> = project.streams.iter().map(|s| (&*s.stream.name, &*s.base, s.stream.schema_id)).collect();
    assert_eq!(names, [("telemetry", "telemetry", Some(1)), ("telemetry_v2", "telemetry", Some(1))]);
    let catalog = project.catalog();
    assert_eq!([1, 2, 3].map(|major| catalog.numbered(1, major)), [Some(0), Some(1), None]);
    assert_eq!(project.majors(), [("telemetry", vec![(1, "telemetry"), (2, "telemetry_v2")])]);
    let known = known_with(&[], &project);
    assert_eq!(
        known.iter().map(|k| (&*k.stream, k.major, k.minor)).collect::<Vec<_>>(),
        [("telemetry", 1, 4), ("telemetry", 2, 0)]
    );
    assert!(evolve(&known, &project).is_empty());
    // In either order, from either file.
    let files = [
        file("a.sql", "CREATE STREAM m (x TEXT) WITH (version = '3.0');"),
        file("b.sql", "CREATE STREAM m (x DOUBLE) WITH (version = '2.0', schema = 8);"),
    ];
    let found = check(&files).unwrap();
    let of = |name: &str| found.stream(name).map(|s| (s.stream.version.major, s.stream.schema_id));
    assert_eq!((of("m"), of("m_v3")), (Some((2, Some(8))), Some((3, Some(8)))));
    assert_ne!(found.fingerprint(), check(&files[1..]).unwrap().fingerprint());
}

#[test]
fn what_two_major_versions_cannot_be() {
    let says = |text: &str| -> String {
        let files = [file("p.sql", text)];
        check(&files).map(|_| String::new()).unwrap_or_else(|found| render_all(&found, &files))
    };
    let two = BOTH.lines().take(2).collect::<Vec<_>>().join("\n");
    for (more, what) in [
        ("CREATE STREAM telemetry (y TEXT) WITH (version = '2.1');", "the name `telemetry` is taken"),
        (
            "CREATE STREAM telemetry_v2 (y TEXT) WITH (schema = 4);",
            "the name `telemetry_v2`, the table of this version, is taken",
        ),
        ("CREATE PIPELINE telemetry_all AS SELECT ts FROM telemetry;", "the view over all versions, is taken"),
        ("CREATE PIPELINE q AS SELECT ts FROM telemetry_all;", "read one of `telemetry` and `telemetry_v2`"),
        (
            "CREATE STREAM telemetry (y TEXT) WITH (version = '3.0', schema = 4);\nCREATE STREAM telemetry () WITH (version = '4.0', schema = 5);",
            "versions of one stream have one schema id",
        ),
    ] {
        let text = says(&format!("{two}\n{more}"));
        assert!(text.contains(what), "{more}: {text}");
    }
    assert!(says("CREATE STREAM a (x DOUBLE OPTIONS (range = '5'));").contains("range = '-40..125'"));
    assert!(says("CREATE STREAM a (x TEXT OPTIONS (range = '1..2'));").contains("only a number can have a range"));
}
