//! Where the other programs of Bulkhead are.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::spec::Spec;
use crate::spec::net::Backend;

/// The programs that a VM is made of.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `bulkhead` itself, which keeps what processes of a VM under systemd are connected to.
    pub bulkhead: PathBuf,
    /// `core-vmm`.
    pub core_vmm: PathBuf,
    /// `vsp-storage`.
    pub vsp_storage: PathBuf,
    /// `vsp-net`, if the VM has a NIC.
    pub vsp_net: Option<PathBuf>,
    /// `passt`, if a NIC is connected to one.
    pub passt: Option<PathBuf>,
    /// `vsp-pci`, if it is there: a VM that has no PCI device can be given one while it runs.
    pub vsp_pci: Option<PathBuf>,
    /// `vsp-video`, if the VM has a screen;
    pub vsp_video: Option<PathBuf>,
    /// `vsp-hid`,
    pub vsp_hid: Option<PathBuf>,
    /// and `bulkhead-console`.
    pub console: Option<PathBuf>,
}

/// A program was not found.
#[derive(Debug, thiserror::Error)]
#[error("cannot find the program {name}: it is not in {looked}; {fix}")]
pub struct Missing {
    name: String,
    looked: String,
    fix: &'static str,
}

/// What to do about a program of ours,
const INSTALL: &str = "install it beside bulkhead, or name its directory with --bin-dir";
/// and about passt.
const INSTALL_PASST: &str =
    "install the package passt (sudo apt install passt), or connect the NIC to a TAP (tap = \"tap0\")";

impl Programs {
    /// Those that `spec` needs. Looks in `bin_dir` alone if it is given, else beside this executable and then in `PATH`; passt, which is
    /// not ours, may be in `PATH` in any case.
    pub fn find(bin_dir: Option<&Path>, spec: &Spec) -> Result<Self, Missing> {
        let path: Vec<PathBuf> =
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
        let directories: Vec<PathBuf> = match bin_dir {
            Some(directory) => vec![directory.to_owned()],
            None => {
                let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
                beside.into_iter().chain(path.clone()).collect()
            }
        };
        let find = |name| find_in(&directories, name, INSTALL);
        let of_screen = |name| spec.screen.is_some().then(|| find(name)).transpose();
        let everywhere: Vec<PathBuf> = bin_dir.map(Path::to_owned).into_iter().chain(path).collect();
        let wants_passt = spec.net.iter().any(|net| net.backend == Backend::Passt);
        Ok(Self {
            bulkhead: std::env::current_exe().unwrap_or_else(|_| "/usr/bin/bulkhead".into()),
            core_vmm: find("core-vmm")?,
            vsp_storage: find("vsp-storage")?,
            vsp_net: (!spec.net.is_empty()).then(|| find("vsp-net")).transpose()?,
            passt: wants_passt.then(|| find_in(&everywhere, "passt", INSTALL_PASST)).transpose()?,
            vsp_pci: match spec.pci.as_slice() {
                [] => find("vsp-pci").ok(),
                _ => Some(find("vsp-pci")?),
            },
            vsp_video: of_screen("vsp-video")?,
            vsp_hid: of_screen("vsp-hid")?,
            console: of_screen("bulkhead-console")?,
        })
    }
}

/// The absolute path of the first executable file called `name`.
fn find_in(directories: &[PathBuf], name: &str, fix: &'static str) -> Result<PathBuf, Missing> {
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
        Missing { name: name.to_owned(), looked, fix }
    })
}
