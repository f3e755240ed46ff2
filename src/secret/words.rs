//! A command line as words, as a shell takes it apart where it has nothing else to do. Pure.

/// What a shell would act on, wherever it stands.
const OF_A_SHELL: &str = "|&;<>()$`*?[\n";

/// Words, with quotes and backslashes as in a shell. What only a shell can do is refused.
///
/// # Errors
/// The words that complete "`name` …"; they quote nothing of the line.
pub(super) fn split(line: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut signs = line.chars();
    let no_end = || "has a quote or a backslash that nothing follows".to_owned();
    while let Some(sign) = signs.next() {
        match sign {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match signs.next().ok_or_else(no_end)? {
                        '\'' => break,
                        sign => word.push(sign),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match signs.next().ok_or_else(no_end)? {
                        '"' => break,
                        '\\' => match signs.next().ok_or_else(no_end)? {
                            sign @ ('"' | '\\' | '$' | '`') => word.push(sign),
                            sign => word.extend(['\\', sign]),
                        },
                        '$' | '`' => return Err(needs_a_shell()),
                        sign => word.push(sign),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(signs.next().ok_or_else(no_end)?),
            sign if OF_A_SHELL.contains(sign) => return Err(needs_a_shell()),
            '~' | '#' if word.is_none() => return Err(needs_a_shell()),
            sign if sign.is_whitespace() => words.extend(word.take()),
            sign => word.get_or_insert_default().push(sign),
        }
    }
    words.extend(word);
    match words.first().is_some_and(|program| !program.is_empty()) {
        true => Ok(words),
        false => Err("is empty: it is a program with its arguments".to_owned()),
    }
}

fn needs_a_shell() -> String {
    "needs a shell, and none is used: quote what is meant as it stands, or call one, [\"sh\", \"-c\", \"...\"]"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_is_taken_apart_as_a_shell_does_it() {
        for (line, words) in [
            ("pass show seawall", &["pass", "show", "seawall"][..]),
            ("  a\t'b c'd \"e 'f\" ", &["a", "b cd", "e 'f"]),
            (r#"a '' b\ c "d\"\x" e#f~"#, &["a", "", "b c", "d\"\\x", "e#f~"]),
        ] {
            assert_eq!(split(line).unwrap(), words, "{line}");
        }
        for line in [
            "a | b", "a $B", "a \"$B\"", "`a`", "a > b", "a &", "~/a", "a #b", "ls *", "a; b", "'a", "\"a", "a \\", "",
            "''", " ",
        ] {
            assert!(split(line).is_err(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn quoted_words_come_back(words in proptest::collection::vec("[^\0]*", 0..4)) {
            let quoted: Vec<String> = words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
            prop_assert_eq!(split(&format!("x {}", quoted.join(" "))).unwrap()[1..].to_vec(), words);
        }

        #[test]
        fn no_line_panics(line: String) {
            let _ = split(&line);
        }
    }
}
