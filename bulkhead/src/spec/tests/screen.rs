//! Mistakes about the screen.

use super::super::screen::Tls;
use super::*;

fn with(screen: &str) -> String {
    format!("{GOOD}[screen]\n{screen}")
}

fn files(test: &str) -> Files {
    use std::os::unix::fs::PermissionsExt;
    let files = Files::new(test);
    for (name, text) in [
        ("password", "secret12\n"),
        ("long", "much-too-long\n"),
        ("empty", "\r\nx"),
        ("cert.pem", "c"),
        ("key.pem", "k"),
    ] {
        fs::write(files.0.join(name), text).unwrap();
        fs::set_permissions(files.0.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    files
}

#[test]
fn a_screen_needs_nothing_but_its_heading() {
    let files = files("screen-good");
    assert_eq!(files.parse(GOOD).0.unwrap().screen, None);
    let (spec, report) = files.parse(&with(""));
    assert!(report.is_empty(), "{report}");
    let screen = spec.unwrap().screen.unwrap();
    let usual = Screen {
        vram: 32 << 20,
        spare: false,
        listen: None,
        password_file: None,
        web: None,
        tls: None,
        novnc: None,
    };
    assert_eq!(screen, usual);
    let all = "vram = \"64MiB\"\nspare = true\nlisten = \"0.0.0.0:5900\"\npassword_file = \"password\"\nweb = \"[::1]:6080\"\n\
        tls = { cert = \"cert.pem\", key = \"key.pem\" }\n";
    let (spec, report) = files.parse(&with(all));
    let screen = spec.unwrap_or_else(|| panic!("{report}")).screen.unwrap();
    assert!(report.is_empty(), "{report}");
    let path = |name: &str| files.0.join(name);
    assert_eq!((screen.vram, screen.spare), (64 << 20, true));
    assert_eq!(screen.listen, Some("0.0.0.0:5900".parse().unwrap()));
    assert_eq!(screen.web, Some("[::1]:6080".parse().unwrap()));
    assert_eq!(screen.password_file, Some(path("password")));
    assert_eq!(screen.tls, Some(Tls { cert: path("cert.pem"), key: path("key.pem") }));
}

#[test]
fn a_guest_with_a_screen_writes_to_it_unless_told_otherwise() {
    let files = files("screen-cmdline");
    let bare = GOOD.replace("cmdline = \"root=/dev/sda console=ttyS0\"\n", "");
    let cmdline = |source: &str| files.parse(source).0.unwrap().boot.cmdline;
    assert_eq!(cmdline(&bare), "console=ttyS0");
    assert_eq!(cmdline(&format!("{bare}[screen]\n")), "console=tty0 console=ttyS0");
    assert_eq!(cmdline(&with("")), "root=/dev/sda console=ttyS0");
}

#[test]
fn every_mistake_about_a_screen_has_a_place_and_a_fix() {
    let files = files("screen-wrong");
    for (screen, place, message, fix) in [
        ("vram = 32", "14:8", "`vram` must be whole MiB, from 4 to 128", "did you mean \"32MiB\"?"),
        ("vram = \"1GiB\"", "14:8", "`vram` must be whole MiB", "write \"128MiB\""),
        ("vram = \"8193KiB\"", "14:8", "`vram` must be whole MiB", "write \"9MiB\""),
        ("vram = true", "14:8", "`vram` must be a size", "write vram"),
        ("listen = \"5900\"", "14:10", "`listen` is no address with a port: \"5900\"", "127.0.0.1:5900"),
        ("web = \"127.0.0.1:0\"", "14:7", "`web` is no address with a port", "127.0.0.1:6080"),
        ("web = \"localhost:80\"", "14:7", "`web` is no address with a port", "127.0.0.1:6080"),
        ("listen = \"127.0.0.1:5900\"", "14:10", "there is no password", "add password_file"),
        (
            "password_file = \"password\"\nlisten = \"0.0.0.0:5900\"",
            "15:10",
            "`listen` can be reached from other hosts, and nothing would be encrypted",
            "add tls",
        ),
        ("web = \"192.0.2.1:6080\"", "14:7", "`web` can be reached from other hosts", "write tls"),
        ("password_file = \"password\"", "14:17", "means nothing without `listen`", "remove it"),
        (
            "listen = \"127.0.0.1:5900\"\npassword_file = \"gone\"",
            "15:17",
            "cannot read the password file",
            "create it",
        ),
        (
            "listen = \"127.0.0.1:5900\"\npassword_file = \"empty\"",
            "15:17",
            "is empty",
            "password as its first line",
        ),
        (
            "listen = \"127.0.0.1:5900\"\npassword_file = \"long\"",
            "15:17",
            "has 13 characters",
            "hard to guess",
        ),
        (
            "tls = { cert = \"cert.pem\" }",
            "14:7",
            "`key` is missing in `tls` under [screen]",
            "key = \"key.pem\"",
        ),
        (
            "tls = { cert = \"gone.pem\", key = \"key.pem\" }",
            "14:16",
            "cannot read the certificate",
            "PEM file",
        ),
        ("tls = \"cert.pem\"", "14:7", "`tls` must be a section", "[tls]"),
        ("novnc = \"/nowhere\"", "14:9", "there is no vnc.html in /nowhere", "sudo apt install novnc"),
        ("vrma = \"8MiB\"", "14:1", "there is no `vrma` in [screen]", "did you mean `vram`?"),
        ("mtu = 9000", "14:1", "there is no `mtu` in [screen]", "belongs in [[net]]"),
    ] {
        let (found_at, found, found_fix) = files.only(&with(screen));
        assert_eq!(found_at, format!("vm.toml:{place}"), "{screen}: {found}");
        assert!(found.contains(message), "{screen}: {found}");
        assert!(found_fix.contains(fix), "{screen}: {found_fix}");
    }
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(files.0.join("key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let (at, told, fix) = files.only(&with("tls = { cert = \"cert.pem\", key = \"key.pem\" }\n"));
    assert!(
        at.ends_with(":14:34")
            && told.contains("others can read the private key")
            && fix.starts_with("chmod 600"),
        "{at} {told}"
    );
    let same = with("").replace("disk0", "mouse");
    assert!(files.only(&same).1.contains("a device is called \"mouse\""));
    assert!(files.only(&format!("screen = true\n{GOOD}")).1.contains("`screen` must be a section"));
}
