//! A screen, a keyboard and a mouse, driven by the stock drivers and used by programs that people use: a VNC client from PyPI,
//! and noVNC in a browser.

use super::{Guest, Scenario, Spec, visitor::Visitor};

macro_rules! guest {
    ($name:literal) => {
        concat!(
            include_str!(concat!("../../recipes/guest-scripts/", $name)),
            include_str!("../../recipes/guest-scripts/screen")
        )
    };
}
macro_rules! script {
    ($text:literal) => {
        concat!(
            include_str!("../../recipes/lab/continuity.sh"),
            include_str!("../../recipes/lab/screen.sh"),
            "\n",
            $text
        )
    };
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "screen-vnc",
            spec: Spec { job: guest!("screen-fbset"), screen: true, ..Spec::new(Guest::Bookworm, "") },
            script: script!("guest_start; screen_tour; guest_end"),
            status: 0,
            expect: &[
                "framebuffer: hyperv_fb",
                "typed: by VNC",
                "vncdotool: typed and saw",
                "screen: the same after the kill",
                "mode: 800,600",
                "screen: end well",
                "dmesg: clean",
            ],
            limit: 400,
            visit: Some(Visitor::VncDoTool),
        },
        Scenario {
            name: "screen-web",
            spec: Spec { job: guest!("screen-drm"), screen: true, ..Spec::new(Guest::Trixie, "") },
            script: script!(
                "units_start && units_secure vsp-video@lab:video.service=15 vsp-hid@lab:mouse.service=15 \
                    bulkhead-console@lab:console.service=15 || exit; screen_tour; units_end"
            ),
            status: 0,
            expect: &[
                "framebuffer: hyperv_drmdrmfb",
                "typed: in a browser",
                "Chromium: typed and saw",
                "screen: the same after the kill",
                "mode: 1280,720",
                "screen: end well",
                "dmesg: clean",
            ],
            limit: 500,
            visit: Some(Visitor::Chromium),
        },
    ]
}
