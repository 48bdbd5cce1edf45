//! The structure of the source: folders import only from the folders above them, and no file is too long.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::imports;

/// The folders and files of `src`, each of which may import from those before it. `lib.rs` may import from all.
const LAYERS: [&str; 13] = [
    "exit",
    "error",
    "sys",
    "config",
    "plan",
    "state",
    "process",
    "engine",
    "preflight",
    "runtime",
    "vm",
    "machine",
    "guide",
];

/// Errors contain types of any layer. So this module may import from all, also from the root of the crate.
const EXEMPT: &str = "error";

const MAX_LINES: usize = 400;

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Returns all Rust files in a folder of the repository, with paths relative to that folder.
pub fn rust_files(folder: &str) -> Vec<(PathBuf, String)> {
    let top = root().join(folder);
    let (mut folders, mut files) = (vec![top.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push((path.strip_prefix(&top).unwrap().to_owned(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// Returns the path of the module of a file in `src`. For `lib.rs` it is empty.
fn module_of(file: &Path) -> Vec<String> {
    let names = file.with_extension("");
    let mut names: Vec<_> = names.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
    if names.last().is_some_and(|name| ["mod", "lib"].contains(&name.as_str())) {
        names.pop();
    }
    names
}

/// Returns what each file of the crate imports, without `lib.rs` and the files that are only compiled for tests.
fn imports_of(files: &[(PathBuf, String)]) -> BTreeMap<PathBuf, Vec<Vec<String>>> {
    let all: Vec<_> = files.iter().map(|(file, source)| (file, imports::read(&module_of(file), source))).collect();
    let tests: BTreeSet<_> = all.iter().flat_map(|(_, imports)| &imports.test_modules).cloned().collect();
    let crate_files = all.into_iter().filter(|(file, _)| {
        let module = module_of(file);
        !module.is_empty() && !tests.contains(&module)
    });
    crate_files.map(|(file, imports)| (file.clone(), imports.paths)).collect()
}

/// Returns the imports from a later layer, and those of names at the root of the crate.
fn wrong_imports(files: &[(PathBuf, String)]) -> Vec<String> {
    let position = |layer: Option<&String>| LAYERS.iter().position(|known| Some(*known) == layer.map(String::as_str));
    let mut wrong = Vec::new();
    for (file, paths) in imports_of(files) {
        let module = module_of(&file);
        if module[0] == EXEMPT {
            continue;
        }
        for path in paths {
            // A name at the root of the crate belongs to no layer.
            let is_allowed = position(path.first()).is_some_and(|layer| Some(layer) <= position(module.first()));
            if !is_allowed {
                wrong.push(format!("{}: crate::{}", file.display(), path.join("::")));
            }
        }
    }
    wrong
}

/// Returns folders that import from each other in a circle, if there are any. Imports between a folder and its subfolders
/// do not count, nor do those of [`EXEMPT`].
fn circle_of_folders(files: &[(PathBuf, String)]) -> Option<Vec<String>> {
    let imports = imports_of(files);
    // The folder of a file, as a module. A file in `src` itself is its own folder.
    let folder_of = |file: &Path| match file.parent() {
        Some(folder) if folder != Path::new("") => module_of(folder),
        _ => module_of(file),
    };
    let folders: BTreeMap<_, _> = imports.keys().map(|file| (module_of(file), folder_of(file))).collect();
    let mut edges = BTreeMap::<Vec<String>, BTreeSet<Vec<String>>>::new();
    for (file, paths) in &imports {
        let from = folder_of(file);
        // The longest prefix of a path that is a module is the file that has the imported name.
        let targets = paths.iter().filter_map(|path| (1..=path.len()).rev().find_map(|n| folders.get(&path[..n])));
        let others = targets.filter(|to| !to.starts_with(&from) && !from.starts_with(to) && from[0] != EXEMPT);
        edges.entry(from.clone()).or_default().extend(others.cloned());
    }
    // A folder that imports from no other folder is in no circle. Nor is a folder from which no other folder imports.
    loop {
        let before = edges.len();
        let imported: BTreeSet<_> = edges.values().flatten().cloned().collect();
        let importing: BTreeSet<_> = edges.keys().cloned().collect();
        edges.retain(|folder, to| imported.contains(folder) && !to.is_disjoint(&importing));
        if edges.len() == before {
            let left: Vec<_> = edges.keys().map(|folder| folder.join("/")).collect();
            return if left.is_empty() { None } else { Some(left) };
        }
    }
}

#[test]
fn layers_import_only_from_earlier_layers() {
    let files = rust_files("src");
    assert!(imports_of(&files).values().map(Vec::len).sum::<usize>() > 100, "the imports are not found");
    assert_eq!(
        wrong_imports(&files),
        [""; 0],
        "these imports are from a later layer of {LAYERS:?}, or from the root of the crate"
    );
}

#[test]
fn every_module_of_the_crate_is_in_the_list_of_layers() {
    let entries = fs::read_dir(root().join("src")).unwrap().map(|entry| entry.unwrap().path());
    let modules: BTreeSet<_> = entries
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| name != "lib")
        .collect();
    assert_eq!(modules, LAYERS.map(str::to_owned).into());
}

#[test]
fn no_folders_import_each_other_in_a_circle() {
    assert_eq!(circle_of_folders(&rust_files("src")), None);
}

#[test]
fn every_file_has_at_most_400_lines() {
    for folder in ["src", "tests", "examples", "benches"] {
        for (file, source) in rust_files(folder) {
            let lines = source.lines().count();
            assert!(lines <= MAX_LINES, "{folder}/{} has {lines} lines, more than {MAX_LINES}", file.display());
        }
    }
}

fn files(sources: &[(&str, &str)]) -> Vec<(PathBuf, String)> {
    sources.iter().map(|(file, source)| (file.into(), (*source).to_owned())).collect()
}

#[test]
fn check_finds_an_import_from_a_later_layer() {
    let wrong = |file: &str, source: &str| wrong_imports(&files(&[(file, source)]));
    assert_eq!(wrong("sys/file.rs", "use crate::machine::start;"), ["sys/file.rs: crate::machine::start"]);
    assert_eq!(
        wrong("plan/mod.rs", "use crate::{config::HyperKit, vm::{self, Vm}};"),
        ["plan/mod.rs: crate::vm", "plan/mod.rs: crate::vm::Vm"]
    );
    assert_eq!(wrong("vm/mod.rs", "fn kill() { crate::machine::kill() }"), ["vm/mod.rs: crate::machine::kill"]);
    assert_eq!(wrong("sys/file.rs", "use super::super::vm::Vm;"), ["sys/file.rs: crate::vm::Vm"]);
    assert_eq!(wrong("exit.rs", "use super::error::Error;"), ["exit.rs: crate::error::Error"]);
    assert_eq!(wrong("vm/mod.rs", "use crate::Exit;"), ["vm/mod.rs: crate::Exit"]);
    assert_eq!(wrong("vm/mod.rs", "use crate::new_folder::X;"), ["vm/mod.rs: crate::new_folder::X"]);
    assert_eq!(wrong("new_folder/mod.rs", "use crate::exit::Exit;"), ["new_folder/mod.rs: crate::exit::Exit"]);
}

#[test]
fn check_allows_other_imports() {
    let allowed = [
        ("lib.rs", "use crate::machine::Found;"),
        ("error/mod.rs", "use crate::{Exit, runtime::log_tail::LogTail};"),
        ("machine/mod.rs", "use crate::vm::Vm; use crate::machine::start; mod inner { use super::X; }"),
        ("config/json/mod.rs", "use crate::config::HyperKit; #[cfg(test)] mod pinned;"),
        ("config/json/pinned.rs", "use crate::HyperKit;"),
    ];
    assert_eq!(wrong_imports(&files(&allowed)), [""; 0]);
}

#[test]
fn check_finds_a_circle_of_folders() {
    let engine = ("engine/mod.rs", "use crate::engine::a::One; use crate::plan::X;");
    let one = ("engine/a/mod.rs", "use crate::engine::b::part::Two; use crate::engine::Engine;");
    let two = ("engine/b/part.rs", "use crate::engine::Engine;");
    let plan = ("plan/mod.rs", "use crate::exit::Exit;");
    let machine = ("machine/mod.rs", "use crate::engine::a::One;");
    assert_eq!(circle_of_folders(&files(&[engine, one, two, plan, machine])), None);
    let back = ("engine/b/mod.rs", "use crate::engine::a::One;");
    let circle = circle_of_folders(&files(&[engine, one, two, plan, machine, back]));
    assert_eq!(circle.unwrap(), ["engine/a", "engine/b"]);
}
