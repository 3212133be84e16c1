//! noVNC's files, in memory.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Body;

/// Files, at most. noVNC has a hundred.
const MOST_FILES: usize = 2048;
/// Bytes of all of them. noVNC has less than two million.
const MOST_BYTES: u64 = 32 << 20;
/// Directories in each other. Also ends a ring of links.
const DEEPEST: usize = 8;

/// What browsers have to be told that a file is, by the end of its name. Others are not needed.
const KINDS: [(&str, &str); 14] = [
    ("css", "text/css; charset=utf-8"),
    ("gif", "image/gif"),
    ("html", "text/html; charset=utf-8"),
    ("ico", "image/vnd.microsoft.icon"),
    ("js", "text/javascript; charset=utf-8"),
    ("json", "application/json; charset=utf-8"),
    ("mp3", "audio/mpeg"),
    ("oga", "audio/ogg"),
    ("png", "image/png"),
    ("svg", "image/svg+xml"),
    ("ttf", "font/ttf"),
    ("wasm", "application/wasm"),
    ("woff", "font/woff"),
    ("woff2", "font/woff2"),
];

/// The page that everything begins with.
pub const PAGE: &str = "vnc.html";

/// noVNC cannot be used. The rest of a sentence.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error("cannot read {}: {error}", .path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// It is something else.
    #[error("{} has no {PAGE}", .0.display())]
    NoPage(PathBuf),
    /// It is far too much.
    #[error("{} has more than {MOST_FILES} files or {} MiB: is it noVNC?", .0.display(), MOST_BYTES >> 20)]
    TooMuch(PathBuf),
}

/// A file.
#[derive(Clone, Debug)]
pub struct File {
    /// What is in it.
    pub bytes: Body,
    /// What kind that is.
    pub kind: &'static str,
}

/// All of them, by their paths in noVNC's directory.
#[derive(Debug, Default)]
pub struct Files {
    all: HashMap<String, File>,
}

impl Files {
    /// Reads what is in `directory`.
    pub fn read(directory: &Path) -> Result<Self, Error> {
        let mut files = Self::default();
        let mut room = MOST_BYTES;
        files.add(directory, directory, "", 0, &mut room)?;
        if files.all.contains_key(PAGE) { Ok(files) } else { Err(Error::NoPage(directory.to_owned())) }
    }

    fn add(
        &mut self,
        top: &Path,
        directory: &Path,
        prefix: &str,
        depth: usize,
        room: &mut u64,
    ) -> Result<(), Error> {
        let failed = |path: &Path, error| Error::Read { path: path.to_owned(), error };
        for entry in fs::read_dir(directory).map_err(|error| failed(directory, error))? {
            let entry = entry.map_err(|error| failed(directory, error))?;
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else { continue };
            // A link that leads nowhere is nobody's page.
            let Ok(found) = fs::metadata(&path) else { continue };
            let key = format!("{prefix}{name}");
            if found.is_dir() && depth < DEEPEST {
                self.add(top, &path, &format!("{key}/"), depth + 1, room)?;
            } else if let (true, Some(kind)) = (found.is_file(), kind(&name)) {
                let too_much = || Error::TooMuch(top.to_owned());
                *room = room.checked_sub(found.len()).ok_or_else(too_much)?;
                if self.all.len() >= MOST_FILES {
                    return Err(too_much());
                }
                let bytes = fs::read(&path).map_err(|error| failed(&path, error))?.into();
                self.all.insert(key, File { bytes, kind });
            }
        }
        Ok(())
    }

    /// The file with that path.
    pub fn get(&self, path: &str) -> Option<&File> {
        self.all.get(path)
    }
}

fn kind(name: &str) -> Option<&'static str> {
    let (_, end) = name.rsplit_once('.')?;
    KINDS.iter().find(|(known, _)| *known == end).map(|(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_read_and_the_rest_is_left() {
        let directory = std::env::temp_dir().join(format!("bulkhead-novnc-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(directory.join("app/images")).unwrap();
        assert!(matches!(Files::read(&directory), Err(Error::NoPage(_))));
        fs::write(directory.join(PAGE), "<html>").unwrap();
        fs::write(directory.join("app/ui.js"), "1").unwrap();
        fs::write(directory.join("app/Makefile"), "no").unwrap();
        std::os::unix::fs::symlink(&directory, directory.join("app/images/ring")).unwrap();
        std::os::unix::fs::symlink("/nowhere.js", directory.join("app/gone.js")).unwrap();
        let files = Files::read(&directory).unwrap();
        let ui = files.get("app/ui.js").unwrap();
        assert_eq!((&ui.bytes[..], ui.kind), (&b"1"[..], "text/javascript; charset=utf-8"));
        assert!(files.get("app/Makefile").is_none() && files.get("app/gone.js").is_none());
        assert!(files.get("../vnc.html").is_none() && files.get("").is_none());
        fs::remove_dir_all(&directory).unwrap();
        assert!(matches!(Files::read(&directory), Err(Error::Read { .. })));
    }
}
