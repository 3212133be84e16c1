//! The smallest device on the software partition: the whole road of a packet, and what a hostile
//! guest can do to it.

use std::time::Duration;

use bulkhead_tests::Vm;
use vmbus::{guid::class, protocol::Version};
use vsc::{Client, OpenOptions, Options, echo::Echo};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn packets_come_back() -> anyhow::Result<()> {
    let vm = Vm::builder().echo("echo").start()?;
    let mut client = Client::connect(vm.platform().clone(), Options::default())?;
    assert_eq!(client.version(), Version::V5_3);
    let offers = client.request_offers()?;
    assert_eq!(offers.len(), 1);
    assert_eq!(offers[0].class, class::ECHO);
    let mut echo = Echo::open(&mut client, &offers[0], &OpenOptions::default())?;
    for n in 0..2000u32 {
        echo.echo(&vec![n as u8; (n % 1500) as usize], LIMIT)?;
    }
    client.close(echo.into_channel())?;
    client.unload()?;
    Ok(())
}
