//! A reader over the TOML tree that knows the line of each key and collects problems as it goes.
//!
//! Every key that is asked for becomes a known key of its table. What nobody asked for is unknown, so
//! there is no second list of keys that could grow stale.

use std::{
    cell::RefCell,
    ops::Range,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::{Problem, Problems};

/// The reason given for what only later versions can do.
pub(super) const LATER: &str = "not in this version yet";

/// Where problems are collected while a file is read.
pub(super) struct Report {
    file: PathBuf,
    line_starts: Vec<usize>,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
}

impl Report {
    pub(super) fn new(text: &str, file: &Path) -> Self {
        let after_line_feeds =
            text.bytes().enumerate().filter(|(_, octet)| *octet == b'\n').map(|(at, _)| at + 1);
        Self {
            file: file.to_owned(),
            line_starts: std::iter::once(0).chain(after_line_feeds).collect(),
            problems: RefCell::default(),
            warnings: RefCell::default(),
        }
    }

    /// Text that is not TOML.
    pub(super) fn syntax(&self, span: Option<Range<usize>>, reason: &str) {
        // The parser describes some errors in several lines; a problem has one.
        let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
        let line = span.map(|span| self.line(span.start));
        self.problems.borrow_mut().push(self.problem(line, String::new(), reason, None));
    }

    /// What was read if nothing is wrong with it, else all that is; with the warnings in both cases.
    pub(super) fn verdict<T>(self, read: Option<T>) -> Result<(T, Vec<Problem>), Problems> {
        let mut problems = self.problems.take();
        let mut warnings = self.warnings.take();
        problems.sort_by_key(|problem| problem.line);
        warnings.sort_by_key(|problem| problem.line);
        match read {
            Some(read) if problems.is_empty() => Ok((read, warnings)),
            _ => Err(Problems { problems, warnings }),
        }
    }

    fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    fn problem(
        &self,
        line: Option<usize>,
        key: String,
        reason: String,
        hint: Option<String>,
    ) -> Problem {
        Problem { file: self.file.clone(), line, key, reason, hint }
    }
}

/// What is wrong with a value; the table that holds it knows the key and the line.
pub(super) struct Complaint {
    pub(super) reason: String,
    pub(super) hint: Option<String>,
}

impl Complaint {
    pub(super) fn new(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { reason: reason.into(), hint: Some(hint.into()) }
    }
}

/// One table of the file, or an absent one.
pub(super) struct Table<'a> {
    report: &'a Report,
    path: String,
    line: Option<usize>,
    entries: Option<&'a DeTable<'a>>,
    reads: Vec<(&'static str, Option<usize>)>,
}

impl<'a> Table<'a> {
    pub(super) fn root(report: &'a Report, entries: &'a DeTable<'a>) -> Self {
        Self { report, path: String::new(), line: None, entries: Some(entries), reads: Vec::new() }
    }

    /// The value of a key, which is known from now on.
    pub(super) fn take(&mut self, key: &'static str) -> Option<&'a DeValue<'a>> {
        debug_assert!(self.reads.iter().all(|(read, _)| *read != key), "{key} is read twice");
        let found = self.entries.and_then(|entries| entries.get_key_value(key));
        self.reads.push((key, found.map(|(name, _)| self.report.line(name.span().start))));
        found.map(|(_, value)| value.get_ref())
    }

    /// The value of a key, parsed. A complaint becomes a problem and no value.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&'a DeValue<'a>) -> Result<T, Complaint>,
    ) -> Option<T> {
        match parse(self.take(key)?) {
            Ok(value) => Some(value),
            Err(complaint) => {
                self.complain(key, complaint);
                None
            }
        }
    }

    /// The items of a list, each parsed by itself, so that each problem has its own line.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&DeValue<'_>) -> Result<T, Complaint>,
    ) -> Option<Vec<T>> {
        let array = self.read(key, |value| {
            value
                .as_array()
                .ok_or_else(|| mismatch("a list", value, &format!("for example {key} = []")))
        })?;
        let mut items = Vec::with_capacity(array.len());
        for item in array.iter() {
            match parse(item.get_ref()) {
                Ok(value) => items.push(value),
                Err(complaint) => {
                    let line = self.report.line(item.span().start);
                    self.push(Some(line), key, complaint.reason, complaint.hint);
                }
            }
        }
        // With a problem among them they are not what was meant: an empty rest would be another problem.
        (items.len() == array.len()).then_some(items)
    }

    /// A section, `None` if it is not there.
    pub(super) fn section(&mut self, key: &'static str) -> Option<Table<'a>> {
        let path = self.path_of(key);
        let entries = self.read(key, |value| {
            value.as_table().ok_or_else(|| mismatch("a section", value, &format!("write [{path}]")))
        })?;
        Some(self.below(key, self.line_of(key), Some(entries)))
    }

    /// The table that is the value of a key which was taken.
    pub(super) fn inline(&self, key: &str, value: &'a DeValue<'a>) -> Option<Table<'a>> {
        value.as_table().map(|entries| self.below(key, self.line_of(key), Some(entries)))
    }

    /// A section; one that is not there reads as empty.
    pub(super) fn section_or_empty(&mut self, key: &'static str) -> Table<'a> {
        self.section(key).unwrap_or_else(|| self.below(key, None, None))
    }

    /// The sections of a list such as `[[listener]]`.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Table<'a>> {
        let hint = format!("write [[{}]]", self.path_of(key));
        let Some(value) = self.take(key) else {
            return Vec::new();
        };
        let Some(array) = value.as_array() else {
            self.complain(key, mismatch("a list of sections", value, &hint));
            return Vec::new();
        };
        if array.is_empty() {
            self.problem(key, "it is empty", hint.as_str());
        }
        let mut tables = Vec::with_capacity(array.len());
        for item in array.iter() {
            let line = Some(self.report.line(item.span().start));
            match item.get_ref().as_table() {
                Some(entries) => tables.push(self.below(key, line, Some(entries))),
                None => {
                    let complaint = mismatch("a section", item.get_ref(), &hint);
                    self.push(line, key, complaint.reason, complaint.hint);
                }
            }
        }
        tables
    }

    /// Whether a key that was read is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.reads.iter().any(|(read, line)| *read == key && line.is_some())
    }

    /// The folder that relative paths start at.
    pub(super) fn folder(&self) -> PathBuf {
        self.report.file.parent().map(Path::to_owned).unwrap_or_default()
    }

    /// A problem at a key, or at the head of the section if the key is not there.
    pub(super) fn problem(&self, key: &str, reason: impl Into<String>, hint: impl Into<String>) {
        self.push(self.line_of(key), key, reason.into(), Some(hint.into()));
    }

    /// As [`Table::problem`], of what was found out about a value.
    pub(super) fn complain(&self, key: &str, complaint: Complaint) {
        self.push(self.line_of(key), key, complaint.reason, complaint.hint);
    }

    /// A warning at a key.
    pub(super) fn warning(&self, key: &str, reason: impl Into<String>, hint: impl Into<String>) {
        let warning = self.report.problem(
            self.line_of(key),
            self.path_of(key),
            reason.into(),
            Some(hint.into()),
        );
        self.report.warnings.borrow_mut().push(warning);
    }

    /// A key without which this section cannot be. Silent if it is there: then it has its own problem.
    pub(super) fn require(&self, key: &str, example: &str) {
        if !self.has(key) {
            self.problem(key, "missing", format!("for example {example}"));
        }
    }

    /// Ends the reading: what nobody asked for is unknown.
    pub(super) fn finish(self) {
        for (name, value) in self.entries.into_iter().flatten() {
            if self.reads.iter().any(|(read, _)| *read == name.get_ref()) {
                continue;
            }
            let what = if value.get_ref().is_table() { "unknown section" } else { "unknown key" };
            let known: Vec<_> = self.reads.iter().map(|(read, _)| *read).collect();
            let hint = match nearest(name.get_ref(), &known) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("known here: {}", known.join(", ")),
            };
            let line = self.report.line(name.span().start);
            self.push(Some(line), &printable(name.get_ref()), what.into(), Some(hint));
        }
    }

    fn push(&self, line: Option<usize>, key: &str, reason: String, hint: Option<String>) {
        let problem = self.report.problem(line, self.path_of(key), reason, hint);
        self.report.problems.borrow_mut().push(problem);
    }

    fn below(&self, key: &str, line: Option<usize>, entries: Option<&'a DeTable<'a>>) -> Table<'a> {
        Table { report: self.report, path: self.path_of(key), line, entries, reads: Vec::new() }
    }

    fn path_of(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    fn line_of(&self, key: &str) -> Option<usize> {
        self.reads.iter().find(|(read, _)| *read == key).and_then(|(_, line)| *line).or(self.line)
    }
}

/// A value of the wrong type.
pub(super) fn mismatch(expected: &str, found: &DeValue<'_>, hint: &str) -> Complaint {
    let found = match found {
        DeValue::Array(_) => "a list",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Float(_) => "a number with a point",
        DeValue::Integer(_) => "an integer",
        DeValue::String(_) => "a string",
        DeValue::Table(_) => "a section",
    };
    Complaint::new(format!("expected {expected}, found {found}"), hint)
}

/// The known word that was probably meant: one slip for each three letters.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = word.to_ascii_lowercase();
    let near =
        known.iter().map(|known| (strsim::damerau_levenshtein(&word, known), *known)).min()?;
    (near.0 <= word.chars().count().div_ceil(3)).then_some(near.1)
}

/// A problem has one line, but a quoted key can hold anything, and the parser lets anything stand behind the
/// `1_` of an integer.
pub(super) fn printable(word: &str) -> String {
    let bare =
        word.bytes().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'_' | b'-'));
    if bare && !word.is_empty() { word.to_owned() } else { format!("{word:?}") }
}
