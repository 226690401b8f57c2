//! Finds the paths of a Rust source text, as far as the floors need it.
//!
//! Comments, doc comments, strings and characters are passed over. Groups (`a::{b, c::{self, d}}`)
//! come out as one path an item. Whether a path stands in a `use`, in code, in a macro or in
//! `#[cfg(test)]` makes no difference.

/// One path as it is written: `crate::proto::Reply`, `super::super::policy`, but also `x` alone.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    pub(crate) segments: Vec<Segment>,
    /// The `mod name { … }` blocks around it, outermost first.
    pub(crate) inside: Vec<String>,
    /// The place named by `pub(crate)` or `pub(in …)`: it may be the crate's root.
    pub(crate) is_visibility: bool,
}

/// A word of a path, or its closing `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) name: String,
    pub(crate) line: usize,
}

impl Path {
    /// As it would be written without groups.
    pub(crate) fn text(&self) -> String {
        let names: Vec<_> = self.segments.iter().map(|segment| segment.name.as_str()).collect();
        names.join("::")
    }
}

/// Every path of a source text, in the order of the text.
pub(crate) fn paths(source: &str) -> Vec<Path> {
    let tokens = Lexer { rest: source, line: 1 }.collect();
    let mut walk = Walk { tokens, at: 0, depth: 0, modules: Vec::new(), found: Vec::new() };
    walk.file();
    walk.found
}

struct Walk<'s> {
    tokens: Vec<Token<'s>>,
    at: usize,
    depth: usize,
    /// The open `mod` blocks with the depth of their braces.
    modules: Vec<(String, usize)>,
    found: Vec<Path>,
}

impl<'s> Walk<'s> {
    fn file(&mut self) {
        while let Some(text) = self.text(0) {
            match text {
                "mod" if self.text(2) == Some("{") => {
                    self.modules.push((self.text(1).unwrap_or_default().to_owned(), self.depth));
                    self.depth += 1;
                    self.at += 3;
                }
                "{" => {
                    self.depth += 1;
                    self.at += 1;
                }
                "}" => {
                    self.depth = self.depth.saturating_sub(1);
                    self.modules.pop_if(|(_, depth)| *depth == self.depth);
                    self.at += 1;
                }
                text if is_name(text) && !self.continues_a_path() => self.path(Path {
                    segments: Vec::new(),
                    inside: self.modules.iter().map(|(name, _)| name.clone()).collect(),
                    is_visibility: self.is_visibility(),
                }),
                _ => self.at += 1,
            }
        }
    }

    /// A path, or one item of a group with what stands before the group.
    fn path(&mut self, mut path: Path) {
        while let Some(token) = self.tokens.get(self.at) {
            self.at += 1;
            if token.text == "{" {
                return self.group(&path);
            }
            path.segments.push(Segment { name: token.text.to_owned(), line: token.line });
            let goes_on = |next: &str| is_name(next) || matches!(next, "{" | "*");
            if token.text == "*" || self.text(0) != Some("::") || !self.text(1).is_some_and(goes_on)
            {
                break;
            }
            self.at += 1;
        }
        self.found.push(path);
    }

    fn group(&mut self, before: &Path) {
        while let Some(text) = self.text(0) {
            match text {
                "}" => {
                    self.at += 1;
                    return;
                }
                "as" => self.at += 2,
                text if is_name(text) || matches!(text, "*" | "{") => self.path(before.clone()),
                _ => self.at += 1,
            }
        }
    }

    /// `b` of `a::b` and of `<T>::b`, but not of `use ::b`.
    fn continues_a_path(&self) -> bool {
        self.back(1) == Some("::") && self.back(2).is_some_and(|text| is_name(text) || text == ">")
    }

    fn is_visibility(&self) -> bool {
        let opens_at = if self.back(1) == Some("in") { 2 } else { 1 };
        self.back(opens_at) == Some("(") && self.back(opens_at + 1) == Some("pub")
    }

    fn text(&self, ahead: usize) -> Option<&'s str> {
        self.tokens.get(self.at + ahead).map(|token| token.text)
    }

    fn back(&self, steps: usize) -> Option<&'s str> {
        self.tokens.get(self.at.checked_sub(steps)?).map(|token| token.text)
    }
}

/// What a path can have as a segment. Only the keywords that can stand before `::` matter here.
fn is_name(text: &str) -> bool {
    const KEYWORDS: [&str; 20] = [
        "as", "await", "break", "const", "dyn", "else", "for", "if", "impl", "in", "let", "match",
        "move", "mut", "pub", "ref", "return", "use", "where", "while",
    ];
    text.starts_with(is_word_char) && !KEYWORDS.contains(&text)
}

fn is_word_char(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

/// A word (a raw one without its `r#`), `::`, `->`, `=>` or one other character.
struct Token<'s> {
    text: &'s str,
    line: usize,
}

struct Lexer<'s> {
    rest: &'s str,
    line: usize,
}

impl<'s> Iterator for Lexer<'s> {
    type Item = Token<'s>;

    fn next(&mut self) -> Option<Token<'s>> {
        loop {
            let first = self.rest.chars().next()?;
            let word = self.rest.find(|char| !is_word_char(char)).unwrap_or(self.rest.len());
            let skip = match first {
                _ if first.is_whitespace() => first.len_utf8(),
                '/' if self.rest.starts_with("//") => self.rest.find('\n').unwrap_or(usize::MAX),
                '/' if self.rest.starts_with("/*") => block_comment(self.rest),
                '"' => string(self.rest),
                '\'' => character_or_lifetime(self.rest),
                _ if matches!(&self.rest[..word], "r" | "br" | "cr") => {
                    match raw_string(&self.rest[word..]) {
                        Some(length) => word + length,
                        None if self.rest.starts_with("r#") => "r#".len(),
                        None => return Some(self.take(word)),
                    }
                }
                _ if word > 0 => return Some(self.take(word)),
                _ if ["::", "->", "=>"].iter().any(|pair| self.rest.starts_with(pair)) => {
                    return Some(self.take(2));
                }
                _ => return Some(self.take(first.len_utf8())),
            };
            self.take(skip);
        }
    }
}

impl<'s> Lexer<'s> {
    fn take(&mut self, length: usize) -> Token<'s> {
        let (text, rest) = self.rest.split_at(length.min(self.rest.len()));
        let token = Token { text, line: self.line };
        self.line += text.matches('\n').count();
        self.rest = rest;
        token
    }
}

/// The length of the comment that a text begins with; they nest.
fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    loop {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
        } else {
            match rest.chars().next() {
                Some(char) => at += char.len_utf8(),
                None => return at,
            }
        }
        if depth == 0 {
            return at;
        }
    }
}

fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, char) in text.char_indices().skip(1) {
        match char {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of `#"…"#` after an `r`, with any number of `#`; `None` if this is none.
fn raw_string(text: &str) -> Option<usize> {
    let hashes = text.find(|char| char != '#')?;
    let inner = text[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", &text[..hashes]);
    Some(inner.find(&end).map_or(text.len(), |at| hashes + 1 + at + end.len()))
}

/// The length of `'x'` or `'\n'`; of a lifetime with its name.
fn character_or_lifetime(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some(_)) => {
            chars.find(|(_, char)| *char == '\'').map_or(text.len(), |(at, _)| at + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => text[1..].find(|char| !is_word_char(char)).map_or(text.len(), |at| at + 1),
    }
}
