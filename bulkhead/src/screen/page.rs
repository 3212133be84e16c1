//! The way of the web page's address into a browser. Whoever reads the address first is let in, and a command line can be read by everybody on the
//! host (`/proc/PID/cmdline`); so it goes into a file that only its owner can read, and the browser is given the path of that.
//!
//! It must never put an address into an argument or an environment.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{anyhow, bail};

use crate::runtime_dir::WEB_PAGE;

/// What knows the user's browser.
const OPENER: &str = "xdg-open";

/// Opens `url` in the user's browser. The file stays in the VM's directory `runtime` until the VM ends: nobody says when the browser has read it, and the
/// address is worth nothing after that, or after a minute.
pub fn open(url: &str, vm: &str, runtime: &Path) -> anyhow::Result<()> {
    let by_hand = format!("bulkhead console {vm} --web prints the address, to be pasted into a browser");
    let file = write(url, &places(vm, runtime)).map_err(|error| {
        anyhow!(
            "cannot write a file for the browser into {} or XDG_RUNTIME_DIR: {error}; {by_hand}",
            runtime.display()
        )
    })?;
    match Command::new(OPENER).arg(&file).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => bail!("{OPENER} has found no browser ({status}); {by_hand}"),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("there is no {OPENER} here (its package is xdg-utils); {by_hand}")
        }
        Err(error) => bail!("cannot run {OPENER}: {error}; {by_hand}"),
    }
}

/// Where the file may be, best first. The VM's directory may be root's.
fn places(vm: &str, runtime: &Path) -> Vec<PathBuf> {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty());
    let own = own.map(|directory| Path::new(&directory).join(format!("bulkhead-{vm}.html")));
    [Some(runtime.join(WEB_PAGE)), own].into_iter().flatten().collect()
}

/// Writes it at the first place where that can be done.
fn write(url: &str, places: &[PathBuf]) -> io::Result<PathBuf> {
    let mut result = Err(ErrorKind::NotFound.into());
    for place in places {
        result = write_at(url, place).map(|()| place.clone());
        if result.is_ok() {
            break;
        }
    }
    result
}

fn write_at(url: &str, place: &Path) -> io::Result<()> {
    // A new file in any case: one that is there may be open elsewhere, or a link.
    match fs::remove_file(place) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(place)?;
    file.write_all(page(url).as_bytes())
}

/// A page that leads on to `url`.
fn page(url: &str) -> String {
    // A host's name may be anything.
    let url = url.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
    format!(
        "<!DOCTYPE html>\n<meta charset=\"utf-8\">\n<meta name=\"referrer\" content=\"no-referrer\">\n\
         <meta http-equiv=\"refresh\" content=\"0; url={url}\">\n<title>Bulkhead</title>\n\
         <a href=\"{url}\">The screen of the VM</a>\n"
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn only_its_owner_can_read_the_file_whatever_was_there_before() {
        let directory = std::env::temp_dir().join(format!("bulkhead-page-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (file, others) = (directory.join(WEB_PAGE), directory.join("others"));
        fs::write(&others, "theirs").unwrap();
        symlink(&others, &file).unwrap();
        let places = [PathBuf::from("/nowhere/web.html"), file.clone()];
        for url in ["http://h/?token=1", "http://h/?token=2"] {
            assert_eq!(write(url, &places).unwrap(), file, "at the second place");
            let found = fs::symlink_metadata(&file).unwrap();
            assert!(found.is_file() && found.permissions().mode() & 0o777 == 0o600);
            assert!(fs::read_to_string(&file).unwrap().contains(&format!("content=\"0; url={url}\"")));
        }
        assert_eq!(fs::read_to_string(&others).unwrap(), "theirs");
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(write("http://h/", &places[..1]).is_err());
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn no_address_becomes_more_than_an_address() {
        let text = page("http://\"><script>&/?token=1");
        assert!(text.contains("url=http://&quot;>&lt;script>&amp;/?token=1\""), "{text}");
        assert_eq!(text.matches('"').count(), 12, "{text}");
    }
}
