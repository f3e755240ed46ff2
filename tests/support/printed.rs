//! What a page says is printed, against what is printed.

/// A line without what differs from one time to the next: numbers, times, positions, units.
fn shape(line: &str) -> String {
    const UNITS: [&str; 8] = ["B", "KiB", "MiB", "GiB", "s", "ms", "min", "h"];
    let word = |word: &str| match word {
        _ if word.contains(|letter: char| letter.is_ascii_digit()) => "#".to_owned(),
        _ if UNITS.contains(&word.trim_end_matches(',').trim_end_matches("/s")) => "unit".to_owned(),
        _ => word.to_owned(),
    };
    // A length of time has one unit, or two.
    line.split_whitespace().map(word).collect::<Vec<_>>().join(" ").replace("# unit # unit", "# unit")
}

/// Every line of `expected` was printed by `script`, in this order.
pub fn assert_printed(expected: &str, printed: &str, script: &str) {
    let mut lines = printed.lines().map(shape);
    for line in expected.lines().filter(|line| *line != "…") {
        let wanted = shape(line);
        assert!(lines.any(|line| line == wanted), "{script}printed no line such as {wanted:?}, in order:\n{printed}");
    }
}
