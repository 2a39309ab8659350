//! Words and numbers as people read them.

use bytesize::ByteSize;

/// Text that cannot do anything to a terminal: control characters are spelled out.
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped =
                c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if escaped { c.escape_default().collect::<Vec<_>>() } else { vec![c] }
        })
        .collect()
}

/// A path for people.
pub fn path(path: &std::path::Path) -> String {
    printable(&path.to_string_lossy())
}

/// A path for scripts: what is not Unicode in it is replaced.
pub fn lossy(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Bytes for people: `3.2 MiB`.
pub fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// A rate for people, in the unit networks use: `83.1 MB/s`.
pub fn rate(bytes_per_sec: u64) -> String {
    format!("{}/s", ByteSize(bytes_per_sec).display().si())
}

/// So many of something: `1 file`, `2 files`.
pub fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Rows as columns, each as wide as its widest cell, two blanks apart; nothing trails.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns)
        .map(|i| rows.iter().filter_map(|row| row.get(i)).map(|c| c.chars().count()).max())
        .map(|width| width.unwrap_or(0))
        .collect();
    let lines: Vec<_> = rows
        .iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect();
    lines.join("\n")
}

/// A table, or that there is nothing to be in it.
pub fn or_none(rows: &[Vec<String>], what: &str) -> String {
    if rows.is_empty() { format!("no {what}") } else { table(rows) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_safe_from_names() {
        assert_eq!(printable("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(printable("日本語 é"), "日本語 é");
        assert_eq!(printable("x\u{202e}y"), "x\\u{202e}y");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "bb".into()], vec!["ccc".into(), "d".into()]];
        assert_eq!(table(&rows), "a    bb\nccc  d");
        assert_eq!((count(1, "file"), count(0, "file")), ("1 file".into(), "0 files".into()));
        assert_eq!(size(3 * 1024 * 1024), "3.0 MiB");
        assert_eq!(rate(83_100_000), "83.1 MB/s");
    }
}
