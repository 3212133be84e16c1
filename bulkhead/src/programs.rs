//! Where the other programs of Bulkhead are.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The programs that a VM is made of.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `core-vmm`.
    pub core_vmm: PathBuf,
    /// `vsp-storage`.
    pub vsp_storage: PathBuf,
}

/// A program was not found.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot find the program {name}: it is not in {looked}; install it beside bulkhead, or name its directory with --bin-dir"
)]
pub struct Missing {
    name: String,
    looked: String,
}

impl Programs {
    /// Looks in `bin_dir` alone if it is given, else beside this executable and then in `PATH`.
    pub fn find(bin_dir: Option<&Path>) -> Result<Self, Missing> {
        let directories: Vec<PathBuf> = match bin_dir {
            Some(directory) => vec![directory.to_owned()],
            None => {
                let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
                let path = std::env::var_os("PATH").unwrap_or_default();
                beside.into_iter().chain(std::env::split_paths(&path)).collect()
            }
        };
        Ok(Self {
            core_vmm: find_in(&directories, "core-vmm")?,
            vsp_storage: find_in(&directories, "vsp-storage")?,
        })
    }
}

/// The absolute path of the first executable file called `name`.
fn find_in(directories: &[PathBuf], name: &str) -> Result<PathBuf, Missing> {
    let executable = |path: &PathBuf| {
        path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let found = directories.iter().map(|directory| directory.join(name)).find(executable);
    let absolute = found.and_then(|found| std::path::absolute(found).ok());
    absolute.ok_or_else(|| {
        let looked = match directories {
            [] => "any directory".to_owned(),
            [only] => only.display().to_string(),
            [first, ..] => format!("{} or in PATH", first.display()),
        };
        Missing { name: name.to_owned(), looked }
    })
}
