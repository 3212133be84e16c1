//! The resolutions that a guest is offered.
//!
//! `hyperv_fb` begins with the preferred one and takes no larger one later (its `hvfb_check_var`), unless its command line names
//! another (`video=hyperv_fb:1920x1080`). `hyperv_drm` offers its user everything up to the widest and the highest of the list.

use seat::video::{MAX_HEIGHT, MAX_WIDTH};
use thiserror::Error;

use crate::wire::Resolution;

/// Bytes of a pixel in the modes that both drivers use.
const PIXEL: u64 = 4;
/// Smallest resolution: what `hyperv_fb` insists on (`HVFB_WIDTH_MIN`, `HVFB_HEIGHT_MIN`).
const LEAST: Resolution = Resolution { width: 640, height: 480 };

/// What screens usually have.
const USUAL: [(u16, u16); 24] = [
    (640, 480),
    (800, 600),
    (1024, 768),
    (1152, 864),
    (1280, 720),
    (1280, 768),
    (1280, 800),
    (1280, 960),
    (1280, 1024),
    (1360, 768),
    (1366, 768),
    (1400, 1050),
    (1440, 900),
    (1600, 900),
    (1600, 1200),
    (1680, 1050),
    (1920, 1080),
    (1920, 1200),
    (2048, 1152),
    (2048, 1536),
    (2560, 1440),
    (2560, 1600),
    (3440, 1440),
    (3840, 2160),
];

/// A resolution that this device cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ModeError {
    /// Too small or too large for any.
    #[error("{width}x{height} is not possible: from 640x480 to {MAX_WIDTH}x{MAX_HEIGHT}")]
    Size {
        /// Its width.
        width: u16,
        /// Its height.
        height: u16,
    },
    /// Too large for this video memory.
    #[error("{width}x{height} needs more video memory than {vram} MiB", vram = vram >> 20)]
    Memory {
        /// Its width.
        width: u16,
        /// Its height.
        height: u16,
        /// What there is, in bytes.
        vram: u64,
    },
}

/// The resolutions that fit into `vram` bytes, `preferred` before all others, 64 at most.
pub fn list(preferred: Resolution, vram: u64) -> Result<Vec<Resolution>, ModeError> {
    let Resolution { width, height } = preferred;
    let is_possible = (LEAST.width..=MAX_WIDTH as u16).contains(&width)
        && (LEAST.height..=MAX_HEIGHT as u16).contains(&height);
    if !is_possible {
        return Err(ModeError::Size { width, height });
    }
    if bytes(preferred) > vram {
        return Err(ModeError::Memory { width, height, vram });
    }
    let usual = USUAL.map(|(width, height)| Resolution { width, height });
    let others = usual.into_iter().filter(|one| *one != preferred && bytes(*one) <= vram);
    Ok(std::iter::once(preferred).chain(others).collect())
}

fn bytes(resolution: Resolution) -> u64 {
    u64::from(resolution.width) * u64::from(resolution.height) * PIXEL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_not_offered() {
        let preferred = Resolution { width: 1280, height: 800 };
        let all = list(preferred, 32 << 20).unwrap();
        assert_eq!(all[0], preferred);
        assert!(all.contains(&Resolution { width: 3840, height: 2160 }));
        assert!(all.len() <= crate::wire::MAX_RESOLUTIONS && all.len() == USUAL.len());
        let few = list(preferred, 8 << 20).unwrap();
        assert!(few.contains(&Resolution { width: 1920, height: 1080 }));
        assert!(few.iter().all(|one| bytes(*one) <= 8 << 20) && few.len() < all.len());
        let own = list(Resolution { width: 1000, height: 700 }, 32 << 20).unwrap();
        assert_eq!(own.len(), USUAL.len() + 1);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (width, height) in [(639, 480), (640, 479), (3841, 2160), (3840, 2161), (0, 0), (65535, 65535)] {
            let result = list(Resolution { width, height }, 256 << 20);
            assert_eq!(result, Err(ModeError::Size { width, height }));
        }
        let vram = 4 << 20;
        let result = list(Resolution { width: 1280, height: 1024 }, vram);
        assert_eq!(result, Err(ModeError::Memory { width: 1280, height: 1024, vram }));
    }
}
