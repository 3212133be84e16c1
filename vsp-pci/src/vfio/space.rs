//! The addresses that a function has, and what memory is behind them: the kernel's, translated by the host's IOMMU.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use vsp::Span;

use super::sys::{self, iommufd};

/// Who translates a function's addresses.
#[derive(Debug)]
pub enum Space {
    /// A container of type 1, version 2, and the group that is in it.
    Group {
        /// The container.
        container: Arc<OwnedFd>,
        /// Open, or the function goes back to the host.
        group: Arc<OwnedFd>,
    },
    /// The one address space (IOAS) of an iommufd.
    Ioas {
        /// The iommufd.
        iommufd: Arc<OwnedFd>,
        /// What it calls the space.
        id: u32,
    },
}

impl Space {
    /// The space of a predecessor, from what it has kept; the error is a sentence.
    pub fn adopt(fds: Vec<Arc<OwnedFd>>) -> Result<Self, String> {
        match <[_; 2]>::try_from(fds) {
            Ok([container, group]) => Ok(Self::Group { container, group }),
            Err(fds) => match <[_; 1]>::try_from(fds) {
                Ok([iommufd]) => {
                    let id = iommufd::find(iommufd.as_fd())
                        .map_err(|error| format!("a predecessor has kept no address space: {error}"))?;
                    Ok(Self::Ioas { iommufd, id })
                }
                Err(fds) => {
                    Err(format!("a predecessor has kept {} descriptors beside the function", fds.len()))
                }
            },
        }
    }

    /// What somebody has to keep, beside the function itself. How many tells which it is.
    pub fn kept(&self) -> Vec<&Arc<OwnedFd>> {
        match self {
            Self::Group { container, group } => vec![container, group],
            Self::Ioas { iommufd, .. } => vec![iommufd],
        }
    }

    /// Addresses that can be used, first and last; none: all.
    pub fn ranges(&self) -> io::Result<Vec<(u64, u64)>> {
        match self {
            Self::Group { container, .. } => sys::dma_ranges(container.as_fd()),
            Self::Ioas { iommufd, id } => iommufd::ranges(iommufd.as_fd(), *id),
        }
    }

    /// This memory is behind this address from now on.
    pub fn map(&self, address: u64, memory: Span) -> io::Result<()> {
        match self {
            Self::Group { container, .. } => sys::map_dma(container.as_fd(), address, memory),
            Self::Ioas { iommufd, id } => iommufd::map(iommufd.as_fd(), *id, address, memory),
        }
    }

    /// Nothing is behind these addresses any more: beginning and length of what was mapped, or everything.
    pub fn unmap(&self, piece: Option<(u64, u64)>) -> io::Result<()> {
        match self {
            Self::Group { container, .. } => sys::unmap_dma(container.as_fd(), piece),
            Self::Ioas { iommufd, id } => iommufd::unmap(iommufd.as_fd(), *id, piece),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_predecessor_has_kept_says_which_it_is() {
        let files =
            |count| (0..count).map(|_| Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap())));
        let adopt = |count| Space::adopt(files(count).collect());
        assert!(matches!(adopt(2), Ok(Space::Group { .. })));
        assert_eq!(adopt(2).unwrap().kept().len(), 2);
        // No iommufd.
        assert!(adopt(1).unwrap_err().contains("no address space"));
        for count in [0, 3] {
            assert!(adopt(count).unwrap_err().contains(&format!("{count} descriptors")));
        }
    }
}
