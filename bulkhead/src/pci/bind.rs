//! Takes a device from the host's driver and gives it to VFIO's, and back.
//!
//! It must never do that to a device that somebody works with, and never leave half of it done: what was taken before a failure is given
//! back.

use std::io;
use std::path::Path;

use super::Address;
use super::function::{Function, VFIO};
use super::host::Host;
use super::problem::{self, Problem};
use super::reset;
use super::usage;

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something stands in the way.
    #[error("{address} {problem}")]
    Problem {
        /// The device.
        address: Address,
        /// What.
        problem: Problem,
    },
    /// The host's kernel has no VFIO.
    #[error("the host's kernel has no vfio-pci: {0}")]
    NoVfio(io::Error),
    /// We are not root.
    #[error("only root can give a device to another driver: sudo bulkhead pci ...")]
    Forbidden,
    /// The kernel said no.
    #[error("{address}: cannot write to {file}: {error}")]
    Refused {
        /// The device.
        address: Address,
        /// Where.
        file: String,
        /// What it said.
        error: io::Error,
    },
    /// The kernel has said yes and done nothing.
    #[error(
        "{address}: the kernel has not given it to {wanted} (it has {found}); the kernel's log says why (dmesg)"
    )]
    NotTaken {
        /// The device.
        address: Address,
        /// Who was to have it.
        wanted: &'static str,
        /// Who has it.
        found: String,
    },
}

/// What was done to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The device.
    pub address: Address,
    /// Whose it was,
    pub before: Option<String>,
    /// and whose it is.
    pub after: Option<String>,
}

fn find(host: &Host, address: Address) -> Result<Function, Error> {
    Function::find(host, address).ok_or(Error::Problem { address, problem: Problem::Missing })
}

/// Gives a device to VFIO's driver; with `group`, all others of its group, too.
pub fn bind(host: &Host, address: Address, group: bool) -> Result<Vec<Done>, Error> {
    let function = find(host, address)?;
    let refuse = |address: Address, problem: Option<Problem>| match problem {
        Some(problem) => Err(Error::Problem { address, problem }),
        None => Ok(()),
    };
    let of_itself = problem::of_itself(host, &function);
    refuse(address, of_itself.filter(|problem| !problem.is_mended_by_binding()))?;
    match problem::of_group(host, &function) {
        Some(problem) if problem.is_group() && group => {}
        problem => refuse(address, problem)?,
    }
    let mut wanted = vec![function.clone()];
    if group {
        wanted.extend(function.neighbours(host).into_iter().filter(|other| other.hinders().is_some()));
    }
    for function in wanted.iter().filter(|function| !function.is_bound()) {
        refuse(function.address, usage::claimed(host, function).map(Problem::InUse))?;
    }
    let driver = Path::new("sys/bus/pci/drivers").join(VFIO);
    if !host.path(&driver).exists() {
        host.kernel().load(VFIO).map_err(Error::NoVfio)?;
    }
    // Before anything is taken; and of those that are bound already, too, which somebody else may have done.
    let mut members = vec![function.clone()];
    if group {
        members.extend(function.neighbours(host));
    }
    order_resets(host, &members)?;
    let mut done: Vec<Done> = Vec::new();
    for function in wanted.into_iter().filter(|function| !function.is_bound()) {
        let before = function.driver.clone();
        match give(host, &function, Some(VFIO)) {
            Ok(after) => done.push(Done { address: function.address, before, after }),
            Err(error) => {
                // What fails now fails for the reason that is given.
                let _ = give(host, &function, None);
                for earlier in done.iter().filter_map(|done| Function::find(host, done.address)) {
                    let _ = give(host, &earlier, None);
                }
                members
                    .iter()
                    .filter(|member| !member.is_bound())
                    .for_each(|member| order_as_before(host, member));
                return Err(error);
            }
        }
    }
    Ok(done)
}

/// Gives a device back to the driver that the host has for it; with `group`, all others of its group, too.
pub fn unbind(host: &Host, address: Address, group: bool) -> Result<Vec<Done>, Error> {
    let function = find(host, address)?;
    let mut wanted = vec![function.clone()];
    if group {
        wanted.extend(function.neighbours(host));
    }
    let wanted: Vec<Function> = wanted.into_iter().filter(Function::is_bound).collect();
    // The kernel would wait for whoever has it, for ever.
    if let Some(open) = wanted.iter().find(|function| function.is_open(host)) {
        let problem = Problem::Assigned(open.group.unwrap_or_default());
        return Err(Error::Problem { address: open.address, problem });
    }
    let give_back = |function: Function| {
        let before = function.driver.clone();
        let after = give(host, &function, None)?;
        order_as_before(host, &function);
        Ok(Done { address: function.address, before, after })
    };
    wanted.into_iter().map(give_back).collect()
}

/// Writes to a file of sysfs, for a device.
fn write(host: &Host, address: Address, path: &Path, text: &str) -> Result<(), Error> {
    host.kernel().write(&host.path(path), text).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Error::Forbidden,
        _ => Error::Refused { address, file: format!("/{}", path.display()), error },
    })
}

/// Has the kernel reset devices in a better way than now where it can; all of them, or none.
fn order_resets(host: &Host, functions: &[Function]) -> Result<(), Error> {
    for (done, function) in functions.iter().enumerate() {
        let Some(order) = function.better_resets(host) else { continue };
        if let Err(error) = write(host, function.address, &function.reset_method(), &order) {
            functions[..done].iter().for_each(|earlier| order_as_before(host, earlier));
            return Err(error);
        }
    }
    Ok(())
}

/// Undoes that. Nothing depends on it: to be reset too well harms nobody.
fn order_as_before(host: &Host, function: &Function) {
    if let Some(order) = host.read(function.reset_method()).and_then(|methods| reset::usual(&methods)) {
        let _ = write(host, function.address, &function.reset_method(), &order);
    }
}

/// Has `driver` take the device, or whoever is made for it; who has it then.
fn give(host: &Host, function: &Function, driver: Option<&'static str>) -> Result<Option<String>, Error> {
    let address = function.address;
    let write = |path: &Path, text: &str| write(host, address, path, text);
    let name = address.to_string();
    // An empty line takes back what was written before.
    write(&function.directory().join("driver_override"), driver.unwrap_or("\n"))?;
    let now = || Function::find(host, address).and_then(|function| function.driver);
    if now().is_some() {
        write(&function.directory().join("driver/unbind"), &name)?;
    }
    let probed = write(Path::new("sys/bus/pci/drivers_probe"), &name);
    match (driver, now()) {
        (Some(wanted), found) if found.as_deref() != Some(wanted) => {
            probed?;
            Err(Error::NotTaken { address, wanted, found: found.unwrap_or_else(|| "no driver".to_owned()) })
        }
        // There may be none: then it has none, as before.
        (_, found) => Ok(found),
    }
}
