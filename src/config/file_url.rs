//! URLs as paths of disk images. The Go package has accepted `file:///images/a.qcow2?sync=os&buffered=1` since December
//! 2017, and programs that use the package pass on what their users type.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::config::HyperKit;
use crate::config::disk::{Disk, DiskFormat, FlushMode};
use crate::error::ConfigError;

/// A URL of a file.
#[derive(Debug, PartialEq)]
pub(crate) struct FileUrl {
    pub path: PathBuf,
    /// The option `sync`: what a flush does.
    pub flush: Option<FlushMode>,
}

/// Whether this is a URL and not a path. A path that only contains a colon is not a URL, and neither is a path that
/// begins with `./`.
pub(crate) fn is_url(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    // QEMU reads `json:{…}` as a description of an image.
    is_scheme && (rest.starts_with("//") || is_file(scheme) || (scheme == "json" && rest.starts_with('{')))
}

fn is_file(scheme: &str) -> bool {
    scheme.eq_ignore_ascii_case("file")
}

/// The file that a URL names; `None` if `path` is not a URL. Refuses URLs of other kinds, and options that have no field
/// in [`Disk`].
pub(crate) fn file_url(path: &Path) -> Result<Option<FileUrl>, ConfigError> {
    if !is_url(path) {
        return Ok(None);
    }
    let refuse = |reason| Err(ConfigError::UnsupportedUrl { field: "disks", url: path.to_owned(), reason });
    let Some((scheme, rest)) = path.to_str().and_then(|text| text.split_once(':')) else {
        return Err(ConfigError::NotUtf8 { field: "disks", path: path.to_owned() });
    };
    if !is_file(scheme) {
        return refuse("the scheme is not `file`");
    }
    if rest.contains('#') {
        return refuse("a fragment is not supported");
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let encoded = match rest.strip_prefix("//") {
        None => rest,
        Some(rest) => {
            let at = rest.find('/').unwrap_or(rest.len());
            if !["", "localhost"].contains(&rest[..at].to_ascii_lowercase().as_str()) {
                return refuse("a host is not supported");
            }
            &rest[at..]
        }
    };
    if !encoded.starts_with('/') {
        return refuse("the path is not absolute");
    }
    let Some(decoded) = percent_decoded(encoded) else { return refuse("invalid percent-encoding") };
    let mut flush = None;
    let mut is_buffered = false;
    for option in query.split('&').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("sync", word)) if flush.is_none() && FlushMode::from_word(word).is_some() => {
                flush = FlushMode::from_word(word);
            }
            // hyperkit's default, and the only value that the Go package passes.
            Some(("buffered", "1")) if !is_buffered => is_buffered = true,
            _ => return refuse("unsupported option; only `sync` (none, os or drive) and `buffered=1` are supported"),
        }
    }
    Ok(Some(FileUrl { path: decoded.into(), flush }))
}

/// Decodes each `%` with two hexadecimal digits to a byte. `None` if the text is not valid.
pub(crate) fn percent_decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend(part.get(2..)?.bytes());
    }
    String::from_utf8(bytes).ok()
}

impl Disk {
    /// The disk with a path instead of a URL. `found_format` returns the format of the image at the path, if the disk sets none
    /// and the URL has an option that depends on it.
    pub(crate) fn without_url(
        &self,
        found_format: impl FnOnce(&Self) -> Result<DiskFormat, ConfigError>,
    ) -> Result<Cow<'_, Self>, ConfigError> {
        let url = self.path.as_deref().unwrap_or(Path::new(""));
        let Some(FileUrl { path, flush }) = file_url(url)? else { return Ok(Cow::Borrowed(self)) };
        let mut disk = Self { path: Some(path), ..self.clone() };
        let Some(flush) = flush else { return Ok(Cow::Owned(disk)) };
        let mut format = match &disk.format {
            Some(format) => format.clone(),
            None => found_format(&disk)?,
        };
        match &mut format {
            DiskFormat::Qcow2(options) => {
                options.flush = flush;
                disk.format = Some(format);
            }
            // hyperkit has no option for raw images. Their flush does at least what `os` does.
            DiskFormat::Raw if flush == FlushMode::Drive => {
                let reason = "`sync=drive` requires a qcow2 image";
                return Err(ConfigError::UnsupportedUrl { field: "disks", url: url.to_owned(), reason });
            }
            DiskFormat::Raw => {}
        }
        Ok(Cow::Owned(disk))
    }
}

impl HyperKit {
    /// Replaces URLs of disks by paths, as [`Disk::without_url`] does. Returns the errors of URLs that stay.
    pub(crate) fn replace_urls(
        &mut self,
        found_format: impl Fn(&Disk) -> Result<DiskFormat, ConfigError>,
    ) -> Vec<ConfigError> {
        let mut violations = Vec::new();
        for disk in &mut self.disks {
            match disk.without_url(&found_format) {
                Ok(Cow::Owned(replaced)) => *disk = replaced,
                Ok(Cow::Borrowed(_)) => {}
                Err(violation) => violations.push(violation),
            }
        }
        violations
    }

    pub(crate) fn has_urls(&self) -> bool {
        self.disks.iter().any(|disk| disk.path.as_deref().is_some_and(is_url))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_urls_are_read() {
        let read = |url: &str| file_url(Path::new(url)).unwrap();
        let file = |path: &str, flush| Some(FileUrl { path: path.into(), flush });
        for url in
            ["file:///a/b", "FILE:///a/b", "File:///a/b", "file:/a/b", "file://localhost/a/b", "file://LocalHost/a/b?"]
        {
            assert_eq!(read(url), file("/a/b", None), "{url}");
        }
        assert_eq!(read("file:///a%20b%3F%23%25/%C3%A4+c"), file("/a b?#%/ä+c", None));
        for (query, flush) in [
            ("sync=&buffered=1", FlushMode::Unset),
            ("sync=none", FlushMode::None),
            ("sync=os&buffered=1", FlushMode::Os),
            ("buffered=1&sync=drive", FlushMode::Drive),
        ] {
            assert_eq!(read(&format!("file:///a?{query}")), file("/a", Some(flush)));
        }
        assert_eq!(read("file:///a?buffered=1"), file("/a", None));
    }

    #[test]
    fn other_urls_are_refused() {
        for url in [
            "http://host/a",
            "https://host/a",
            "nbd://host/a",
            "nbd+unix:///a",
            "ssh://host/a",
            r#"json:{"driver":"file"}"#,
            "file://host/a",
            "file://",
            "file://localhost",
            "file:",
            "file:a",
            "file:?sync=os",
            "file:///a%",
            "file:///a%2",
            "file:///a%zz",
            "file:///a%+1",
            "file:///a%ff",
            "file:///a#b",
            "file:///a?sync=sometimes",
            "file:///a?sync",
            "file:///a?buffered=0",
            "file:///a?sync=os&sync=os",
            "file:///a?mode=ro",
        ] {
            match file_url(Path::new(url)) {
                Err(ConfigError::UnsupportedUrl { url: refused, .. }) => assert_eq!(refused, Path::new(url)),
                other => panic!("{url}: {other:?}"),
            }
        }
    }

    #[test]
    fn paths_with_colons_are_paths() {
        for path in [
            "/a:b",
            "a:b.img",
            "nbd:a",
            "json:a",
            "./file:///a",
            "/file:/a",
            "a/b://c",
            "1://a",
            "://a",
            "a b://c",
            "file",
        ] {
            assert_eq!(file_url(Path::new(path)), Ok(None), "{path}");
        }
    }
}
