//! Rows that are told whole, however narrow the terminal is.

/// A row in as many lines as it takes, of at least 11 columns, the second and later ones below its text. Words that are too long are cut, and
/// go on in the next line.
pub(super) fn wrapped(row: &str, columns: usize) -> Vec<String> {
    /// Columns of a row's name.
    const NAME: usize = 10;
    let columns = columns.max(NAME + 1);
    let mut lines = vec![row.chars().take(NAME).collect::<String>()];
    let text: String = row.chars().skip(NAME).collect();
    for mut word in text.split_whitespace() {
        while !word.is_empty() {
            let used = lines.last().map_or(0, |line| line.chars().count());
            let (begins, room) = (used <= NAME, columns.saturating_sub(used.max(NAME) + usize::from(used > NAME)));
            let long = word.chars().count();
            if !begins && long > room {
                lines.push(" ".repeat(NAME));
                continue;
            }
            let end = word.char_indices().nth(room).map_or(word.len(), |(at, _)| at);
            let line = lines.last_mut().expect("there is one");
            if !begins {
                line.push(' ');
            }
            line.push_str(&word[..end]);
            word = &word[end..];
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_whole_on_a_narrow_terminal() {
        let row = "uploads   newest 5, 1 waiting, to s3://checkpoints/a/long/prefix: cannot reach it";
        for columns in [1, 11, 12, 25, 40, 79, 200] {
            let lines = wrapped(row, columns);
            let indented = lines[1..].iter().all(|line| line.starts_with(&" ".repeat(10)) && line.len() > 10);
            let fits = lines.iter().all(|line| line.chars().count() <= columns.max(11));
            let text = |text: &str| text.split_whitespace().collect::<String>();
            assert!(fits && indented && text(&lines.concat()) == text(row), "{columns}: {lines:#?}");
        }
        assert_eq!(
            wrapped(row, 25),
            [
                "uploads   newest 5, 1",
                "          waiting, to",
                "          s3://checkpoint",
                "          s/a/long/prefix",
                "          : cannot reach",
                "          it"
            ]
        );
        assert_eq!(wrapped(row, 200), [row]);
    }
}
