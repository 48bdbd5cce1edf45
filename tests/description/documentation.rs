//! What every page of the documentation has: an example or a link to one, and the errors of calls that can fail.

use std::collections::BTreeSet;

use crate::layers::rust_files;

/// An item with the doc comment before it.
struct Item {
    /// The type of the surrounding `impl` block; empty outside of one.
    owner: String,
    name: String,
    docs: String,
    /// The doc comment of the surrounding `impl` block.
    block_docs: String,
    signature: String,
}

impl Item {
    fn has_example(&self) -> bool {
        [&self.docs, &self.block_docs].iter().any(|docs| docs.contains("```") || docs.contains("an example"))
    }

    fn path(&self) -> String {
        if self.owner.is_empty() { self.name.clone() } else { format!("{}::{}", self.owner, self.name) }
    }
}

/// Returns the word after a prefix of a line, up to the first character that cannot be in a name.
fn name_after<'a>(line: &'a str, prefixes: &[&str]) -> Option<&'a str> {
    let rest = prefixes.iter().find_map(|prefix| line.strip_prefix(prefix))?;
    rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()
}

/// Returns the public types and functions of a file that is formatted by rustfmt, and the public methods in its `impl` blocks.
/// Test modules are indented, and thus skipped.
fn items(source: &str) -> Vec<Item> {
    let (mut found, mut docs, mut owner, mut block_docs) = (Vec::new(), String::new(), String::new(), String::new());
    let lines: Vec<_> = source.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let text = line.trim_start();
        if let Some(doc) = text.strip_prefix("///") {
            docs += doc;
            docs.push('\n');
        } else if text.starts_with("#[") || text.starts_with("//") {
            if text.contains("```") {
                docs += text; // `#[cfg_attr(…, doc = "```")]`
            }
        } else {
            let item = name_after(line, &["pub struct ", "pub enum ", "pub trait ", "pub fn ", "pub type "]);
            let method = name_after(line, &["    pub fn "]).filter(|_| !owner.is_empty());
            if let Some(name) = item.or(method) {
                let end = lines[at..].iter().position(|line| line.ends_with(['{', ';'])).unwrap_or(0);
                let signature = lines[at..=at + end].concat();
                let (owner, block_docs) = match method {
                    Some(_) => (owner.clone(), block_docs.clone()),
                    None => Default::default(),
                };
                found.push(Item { owner, name: name.to_owned(), docs: docs.clone(), block_docs, signature });
            } else if let Some(name) = name_after(line, &["impl "]).filter(|_| !line.contains(" for ")) {
                (owner, block_docs) = (name.to_owned(), docs.clone());
            } else if *line == "}" {
                owner.clear();
            }
            docs.clear();
        }
    }
    found
}

/// Returns the names that `lib.rs` exports.
fn exported(lib: &str) -> BTreeSet<&str> {
    let uses = lib.split("\npub use ").skip(1).filter_map(|rest| rest.split(';').next());
    uses.flat_map(|path| path.split(|c: char| !c.is_alphanumeric() && c != '_')).collect()
}

/// Returns the exported items of the crate and the public methods of its exported types.
fn public_items() -> Vec<Item> {
    let files = rust_files("src");
    let lib = &files.iter().find(|(file, _)| file.as_os_str() == "lib.rs").unwrap().1;
    let exported = exported(lib);
    let all = files.iter().flat_map(|(_, source)| items(source));
    let found: Vec<_> = all.filter(|item| exported.contains(&*item.owner) || item.owner.is_empty()).collect();
    found.into_iter().filter(|item| !item.owner.is_empty() || exported.contains(&*item.name)).collect()
}

#[test]
fn every_exported_type_and_function_has_an_example_or_names_the_page_that_has_one() {
    let (types, _): (Vec<_>, Vec<_>) = public_items().into_iter().partition(|item| item.owner.is_empty());
    assert!(types.len() > 35, "only {} items are found", types.len());
    let without: Vec<_> = types.iter().filter(|item| !item.has_example()).map(Item::path).collect();
    assert_eq!(without, [""; 0]);
}

/// A setter has one line, with a link to the field. Other methods have an example, or one on another page calls them.
#[test]
fn every_public_method_is_called_in_an_example() {
    let files = rust_files("src");
    let docs = |line: &&str| line.trim_start().starts_with("///") || line.trim_start().starts_with("//!");
    let all_docs: String = files.iter().flat_map(|(_, source)| source.lines().filter(docs)).collect();
    let methods: Vec<_> = public_items().into_iter().filter(|item| !item.owner.is_empty()).collect();
    assert!(methods.len() > 80, "only {} methods are found", methods.len());
    let is_shown = |item: &Item| {
        let is_setter = item.docs.contains("(Self#structfield.");
        is_setter || item.has_example() || all_docs.contains(&format!("{}(", item.name))
    };
    let without: Vec<_> = methods.iter().filter(|item| !is_shown(item)).map(Item::path).collect();
    assert_eq!(without, [""; 0]);
}

#[test]
fn every_public_call_that_can_fail_documents_its_errors() {
    let fallible: Vec<_> = public_items().into_iter().filter(|item| item.signature.contains("-> Result<")).collect();
    assert!(fallible.len() > 35, "only {} fallible calls are found", fallible.len());
    let without: Vec<_> = fallible.iter().filter(|item| !item.docs.contains("# Errors")).map(Item::path).collect();
    assert_eq!(without, [""; 0]);
}

#[test]
fn items_are_found_with_their_docs() {
    let source = "
/// One.
#[derive(Debug)]
pub struct One;

/// # Block
impl One {
    /// Fails.
    ///
    /// # Errors
    /// Always.
    pub fn fail(
        &self,
    ) -> Result<()> {
    }

    pub fn plain(&self) {}
}

impl Two for One {
    pub fn not_inherent() {}
}
";
    let found = items(source);
    assert_eq!(found.iter().map(Item::path).collect::<Vec<_>>(), ["One", "One::fail", "One::plain"]);
    assert!(found[1].docs.contains("# Errors") && found[1].signature.contains("-> Result<"));
    assert_eq!((found[1].block_docs.as_str(), found[2].docs.as_str()), (" # Block\n", ""));
    assert_eq!(exported("mod a;\n\npub use a::{One, b::Two};\n"), ["One", "Two", "a", "b", ""].into());
}
