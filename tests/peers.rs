//! The comparison with other tools still works: every figure of it, once, on next to nothing.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod support;

use std::path::Path;
use std::process::Command;
use support::postgres::scratch_directory;
use support::program;

#[test]
fn every_tool_is_measured_and_nothing_is_left_behind() {
    // When a debug build of ours is compared, with all that the comparison makes in one directory
    let temporary = scratch_directory();
    let mut command = Command::new("bash");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers.sh"));
    command.arg("--check").arg(program::path()).env("TMPDIR", temporary.path());
    let output = command.output().unwrap();
    let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "benches/peers.sh failed: {said}");

    // Then each row that CI can have is in its table, with all of its figures
    let tables: Vec<&str> = printed.split("\n| what |").skip(1).collect();
    let expected: [&[&str]; 3] = [
        &["`seawall backup`", "`pg_basebackup "],
        &["`seawall backup --data-directory`", "`pgbackrest backup`", "`pg_basebackup "],
        &["`seawall restore`", "`pgbackrest restore`", "`dd conv=fsync`"],
    ];
    assert_eq!(tables.len(), expected.len(), "{printed}");
    for (table, names) in tables.iter().zip(expected) {
        for name in names {
            let row = table.lines().find(|line| line.starts_with(&format!("| {name}")));
            let row = row.unwrap_or_else(|| panic!("no {name} in {table}\nsaid: {said}"));
            let figures: Vec<&str> = row.split('|').skip(2).map(str::trim).filter(|it| !it.is_empty()).collect();
            let expected = if *name == names[0] { 4 } else { 6 };
            assert_eq!(figures.len(), expected, "{row}");
            assert!(figures.iter().all(|figure| figure.starts_with(|letter: char| letter.is_ascii_digit())), "{row}");
        }
    }

    // And neither a server nor a file of it is left
    let left: Vec<_> = std::fs::read_dir(temporary.path()).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}
