//! The environment of the program: listed variables of `exec`'s environment, without secrets.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

/// Variables that are passed on. The guide's page `tests_in_a_vm` lists them, too. Those of Go are not matched by
/// the prefix `GO`, which `GOOGLE_…` has, too. Cargo puts the directories of Rust's shared libraries into `LD_LIBRARY_PATH`.
const NAMES: &str = "
    PATH HOME USER LOGNAME SHELL PWD TMPDIR TZ CI
    LANG LANGUAGE TERM COLORTERM NO_COLOR CLICOLOR CLICOLOR_FORCE
    XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME XDG_STATE_HOME
    LD_LIBRARY_PATH LLVM_PROFILE_FILE
    GOROOT GOPATH GOBIN GOCACHE GOMODCACHE GOTMPDIR GOCOVERDIR GOENV GOWORK GOFLAGS GODEBUG GOMAXPROCS GOTRACEBACK GOGC
    GOMEMLIMIT GORACE GOOS GOARCH GOAMD64 GOEXPERIMENT GOTOOLCHAIN GO111MODULE
    PYTHONPATH PYTHONHOME VIRTUAL_ENV PYENV_ROOT PYENV_VERSION RBENV_ROOT RBENV_VERSION GEM_HOME GEM_PATH RUBYLIB PERL5LIB
    NODE_PATH NVM_DIR JAVA_HOME
";

/// Variables with these beginnings are passed on, except secrets.
const PREFIXES: &str = "LC_ RUST CARGO NEXTEST __NEXTEST PROPTEST_ INSTA_";

/// Variables with these beginnings are not. The settings of registries and proxies may contain passwords, and the descriptors
/// that `CARGO_MAKEFLAGS` names are not there in the guest.
const EXCEPT: &str = "CARGO_REGISTR CARGO_SOURCE CARGO_HTTP CARGO_NET CARGO_MAKEFLAGS RUSTUP_DIST RUSTUP_UPDATE";

/// Words in the names of secrets.
const SECRETS: &str = "TOKEN SECRET PASSWORD PASSWD PASS CREDENTIAL CREDENTIALS KEY AUTH PROXY";

/// Returns the variables of the program: those of this program that are passed on, and those of `--env`.
pub fn for_program(added: &[(OsString, Option<OsString>)]) -> BTreeMap<OsString, OsString> {
    let mut variables: BTreeMap<_, _> = std::env::vars_os().filter(|(name, _)| is_passed_on(name)).collect();
    for (name, value) in added {
        if let Some(value) = value.clone().or_else(|| std::env::var_os(name)) {
            variables.insert(name.clone(), value);
        }
    }
    variables
}

fn is_passed_on(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let begins_with_one_of = |prefixes: &str| prefixes.split_whitespace().any(|prefix| name.starts_with(prefix));
    let has = |words: &str, name: &str| words.split_whitespace().any(|word| word == name);
    let is_secret = name.split('_').any(|word| has(SECRETS, word));
    has(NAMES, name) || (begins_with_one_of(PREFIXES) && !begins_with_one_of(EXCEPT) && !is_secret)
}
