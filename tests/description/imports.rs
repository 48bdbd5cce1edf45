//! Finds the paths in a source file that lead to items of the same crate: `use crate::…`, and `crate::`, `self::` and
//! `super::` anywhere else.
//!
//! Comments and items behind `#[cfg(test)]` are ignored. A string that is a path counts, since some attributes name a
//! function in a string.

/// What [`read`] finds in a file. Paths start at the root of the crate, without `crate`.
#[derive(Debug, Default, PartialEq)]
pub struct Imports {
    pub paths: Vec<Vec<String>>,
    /// The modules that have their own file and are only compiled for tests.
    pub test_modules: Vec<Vec<String>>,
}

/// Returns the imports of the source file of a module.
pub fn read(module: &[String], source: &str) -> Imports {
    let mut tokens = Vec::new();
    tokenize(&source.chars().collect::<Vec<_>>(), &mut tokens);
    let mut reader = Reader { tokens, at: 0, module: module.to_vec(), imports: Imports::default() };
    reader.read();
    reader.imports
}

/// A name or number, `::`, or one character of punctuation.
#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    PathSeparator,
    Symbol(char),
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn tokenize(text: &[char], tokens: &mut Vec<Token>) {
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        at += match rest {
            ['/', '/', ..] => rest.iter().position(|&c| c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => block_comment(rest),
            ['"', ..] => string(rest, 0, true, tokens),
            ['r', '"', ..] => 1 + string(&rest[1..], 0, false, tokens),
            ['r', '#', ..] if raw_hashes(&rest[1..]) > 0 => {
                let hashes = raw_hashes(&rest[1..]);
                1 + hashes + string(&rest[1 + hashes..], hashes, false, tokens)
            }
            // A character literal. (A lifetime begins with a quote, too.)
            ['\'', '\\', _, more @ ..] => 3 + more.iter().position(|&c| c == '\'').map_or(0, |end| end + 1),
            ['\'', _, '\'', ..] => 3,
            [':', ':', ..] => {
                tokens.push(Token::PathSeparator);
                2
            }
            [first, ..] if is_word(*first) => {
                let length = rest.iter().position(|&c| !is_word(c)).unwrap_or(rest.len());
                // The `b`, `c` or `br` before a string is not a word.
                let is_prefix = matches!(rest[..length], ['b' | 'c'] | ['b' | 'c', 'r'])
                    && matches!(rest.get(length), Some('"' | '\'' | '#'));
                if is_prefix {
                    length.min(1)
                } else {
                    tokens.push(Token::Word(rest[..length].iter().collect()));
                    length
                }
            }
            [space, ..] if space.is_whitespace() => 1,
            [symbol, ..] => {
                tokens.push(Token::Symbol(*symbol));
                1
            }
            [] => 1,
        };
    }
}

/// Returns the length of a block comment. Block comments can be nested.
fn block_comment(text: &[char]) -> usize {
    let (mut at, mut depth) = (2, 1);
    while depth > 0 && at < text.len() {
        match &text[at..] {
            ['*', '/', ..] => (at, depth) = (at + 2, depth - 1),
            ['/', '*', ..] => (at, depth) = (at + 2, depth + 1),
            _ => at += 1,
        }
    }
    at
}

/// Returns the number of `#` before a raw string, and 0 before anything else.
fn raw_hashes(text: &[char]) -> usize {
    let hashes = text.iter().take_while(|&&c| c == '#').count();
    if text.get(hashes) == Some(&'"') { hashes } else { 0 }
}

/// Returns the length of a string with its quotes and the `hashes` behind it. If the string is a path, adds its tokens.
fn string(text: &[char], hashes: usize, has_escapes: bool, tokens: &mut Vec<Token>) -> usize {
    let mut end = 1;
    while end < text.len() {
        match text[end] {
            '\\' if has_escapes => end += 1,
            '"' if text[end + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes => break,
            _ => {}
        }
        end += 1;
    }
    let content = text.get(1..end).unwrap_or_default();
    if content.contains(&':') && content.iter().all(|&c| is_word(c) || c == ':') {
        tokenize(content, tokens);
    }
    end + 1 + hashes
}

/// Goes through the tokens of a file.
struct Reader {
    tokens: Vec<Token>,
    at: usize,
    /// The module of the current token.
    module: Vec<String>,
    imports: Imports,
}

impl Reader {
    fn read(&mut self) {
        // For each open brace, whether it is that of a module.
        let mut braces = Vec::new();
        while let Some(token) = self.tokens.get(self.at).cloned() {
            match token {
                Token::Symbol('#') if self.is_next("#[cfg(test)]") => self.skip_test_item(),
                Token::Word(word) if word == "mod" => braces.extend(self.enter_module().then_some(true)),
                Token::Word(word) if self.starts_path(&word) => {
                    let module = if word == "crate" { Vec::new() } else { self.module.clone() };
                    self.read_path(module);
                }
                Token::Symbol('{') => {
                    braces.push(false);
                    self.at += 1;
                }
                Token::Symbol('}') => {
                    if braces.pop() == Some(true) {
                        self.module.pop();
                    }
                    self.at += 1;
                }
                _ => self.at += 1,
            }
        }
    }

    fn is_next(&self, text: &str) -> bool {
        let mut wanted = Vec::new();
        tokenize(&text.chars().collect::<Vec<_>>(), &mut wanted);
        self.tokens[self.at..].starts_with(&wanted)
    }

    fn is_symbol(&self, symbol: char) -> bool {
        self.tokens.get(self.at) == Some(&Token::Symbol(symbol))
    }

    /// Returns whether this word begins a path to an item of the crate.
    fn starts_path(&self, word: &str) -> bool {
        let is_inside = self.at > 0 && self.tokens[self.at - 1] == Token::PathSeparator;
        !is_inside
            && ["crate", "self", "super"].contains(&word)
            && self.tokens.get(self.at + 1) == Some(&Token::PathSeparator)
    }

    /// Enters an inline module (`mod name {`). Returns whether this is one.
    fn enter_module(&mut self) -> bool {
        self.at += 1;
        match self.tokens.get(self.at..self.at + 2) {
            Some([Token::Word(name), Token::Symbol('{')]) => {
                self.module.push(name.clone());
                self.at += 2;
                true
            }
            _ => false,
        }
    }

    /// Skips an item with its attributes, up to its semicolon or closing brace.
    fn skip_test_item(&mut self) {
        let start = self.at;
        let mut depth = 0;
        while let Some(token) = self.tokens.get(self.at) {
            self.at += 1;
            match token {
                Token::Symbol('(' | '[' | '{') => depth += 1,
                Token::Symbol(close @ (')' | ']' | '}')) => {
                    depth -= 1;
                    if depth == 0 && *close == '}' {
                        break;
                    }
                }
                Token::Symbol(';') if depth == 0 => break,
                _ => {}
            }
        }
        if let [.., Token::Word(keyword), Token::Word(name), Token::Symbol(';')] = &self.tokens[start..self.at] {
            if keyword == "mod" {
                self.imports.test_modules.push(self.module.iter().chain([name]).cloned().collect());
            }
        }
    }

    /// Reads a path that continues after `prefix`, or all paths of a group in braces.
    fn read_path(&mut self, mut prefix: Vec<String>) {
        while let Some(token) = self.tokens.get(self.at).cloned() {
            match token {
                Token::Word(word) => {
                    match word.as_str() {
                        "crate" | "self" => {}
                        "super" => drop(prefix.pop()),
                        _ => prefix.push(word),
                    }
                    self.at += 1;
                    if self.tokens.get(self.at) != Some(&Token::PathSeparator) {
                        break;
                    }
                    self.at += 1;
                }
                Token::Symbol('{') => {
                    self.at += 1;
                    return self.read_group(&prefix);
                }
                Token::Symbol('*') => {
                    prefix.push("*".to_owned());
                    self.at += 1;
                    break;
                }
                // The generic arguments of a type or function begin here.
                _ => break,
            }
        }
        self.imports.paths.push(prefix);
    }

    fn read_group(&mut self, prefix: &[String]) {
        while self.at < self.tokens.len() && !self.is_symbol('}') {
            if let Token::Word(word) = &self.tokens[self.at] {
                if word != "as" {
                    self.read_path(prefix.to_vec());
                    continue;
                }
                self.at += 1; // the name after `as` follows
            } else if self.is_symbol('{') || self.is_symbol('*') {
                self.read_path(prefix.to_vec());
                continue;
            }
            self.at += 1;
        }
        self.at += 1;
    }
}

fn paths(module: &str, source: &str) -> Vec<String> {
    let module: Vec<_> = module.split("::").map(str::to_owned).collect();
    read(&module, source).paths.iter().map(|path| path.join("::")).collect()
}

#[test]
fn groups_and_renames_are_expanded() {
    let source = "pub(crate) use crate::{exit::Exit, vm::{self, Vm as Machine, console::*},};\nuse crate::a::B as C;";
    assert_eq!(paths("plan", source), ["exit::Exit", "vm", "vm::Vm", "vm::console::*", "a::B"]);
}

#[test]
fn paths_in_code_and_attributes_are_read() {
    let source = r#"#[serde(with = "crate::config::json")] fn f<'a>() -> crate::a::B<'a> { crate::c::d::<crate::e::F>('"', b'{', '\'') }"#;
    assert_eq!(paths("plan", source), ["config::json", "a::B", "c::d", "e::F"]);
}

#[test]
fn super_and_self_are_relative_to_the_inline_module() {
    let source = "use super::a; mod inner { use super::b; use super::super::c; use self::d; } use self::inner::e;";
    assert_eq!(paths("x::y", source), ["x::a", "x::y::b", "x::c", "x::y::inner::d", "x::y::inner::e"]);
}

#[test]
fn comments_strings_and_test_items_are_ignored() {
    let source = r##"
        //! [`X`](crate::a)
        /* crate::b /* nested */ crate::c */
        const TEXTS: [&str; 3] = ["see crate::d \" {", r#"" crate::e {"#, "{"];
        const BYTES: &[u8] = br#"" {"#;
        #[cfg(test)]
        use crate::f;
        #[cfg(test)]
        #[allow(dead_code)]
        mod tests { fn g() { crate::g() } }
        #[cfg(test)]
        mod pinned;
        use crate::h;
    "##;
    assert_eq!(paths("x", source), ["h"]);
    let [module, pinned] = [["x"].as_slice(), &["x", "pinned"]].map(|path| path.iter().map(|&name| name.to_owned()));
    assert_eq!(read(&module.collect::<Vec<_>>(), source).test_modules, [pinned.collect::<Vec<_>>()]);
}
