//! Numbers of objects (`RNDIS_OID_*`, `OID_*`).

/// The numbers that this NIC answers to.
pub const GEN_SUPPORTED_LIST: u32 = 0x0001_0101;
/// Ready, always.
pub const GEN_HARDWARE_STATUS: u32 = 0x0001_0102;
/// Ethernet.
pub const GEN_MEDIA_SUPPORTED: u32 = 0x0001_0103;
/// Ethernet.
pub const GEN_MEDIA_IN_USE: u32 = 0x0001_0104;
/// Bytes of a frame that a driver can look at in advance: all.
pub const GEN_MAXIMUM_LOOKAHEAD: u32 = 0x0001_0105;
/// The MTU.
pub const GEN_MAXIMUM_FRAME_SIZE: u32 = 0x0001_0106;
/// Speed in units of 100 bit/s.
pub const GEN_LINK_SPEED: u32 = 0x0001_0107;
/// Means nothing here.
pub const GEN_TRANSMIT_BUFFER_SPACE: u32 = 0x0001_0108;
/// Means nothing here.
pub const GEN_RECEIVE_BUFFER_SPACE: u32 = 0x0001_0109;
/// Largest frame with its header.
pub const GEN_TRANSMIT_BLOCK_SIZE: u32 = 0x0001_010A;
/// Largest frame with its header.
pub const GEN_RECEIVE_BLOCK_SIZE: u32 = 0x0001_010B;
/// Whose NIC this is: nobody's that has a number.
pub const GEN_VENDOR_ID: u32 = 0x0001_010C;
/// What NIC this is.
pub const GEN_VENDOR_DESCRIPTION: u32 = 0x0001_010D;
/// Frames that are wanted.
pub const GEN_CURRENT_PACKET_FILTER: u32 = 0x0001_010E;
/// Bytes of a frame that the driver wants to look at in advance.
pub const GEN_CURRENT_LOOKAHEAD: u32 = 0x0001_010F;
/// Version of NDIS.
pub const GEN_DRIVER_VERSION: u32 = 0x0001_0110;
/// Largest frame with its header.
pub const GEN_MAXIMUM_TOTAL_SIZE: u32 = 0x0001_0111;
/// Wishes of protocols; none matters.
pub const GEN_PROTOCOL_OPTIONS: u32 = 0x0001_0112;
/// Properties of the NIC.
pub const GEN_MAC_OPTIONS: u32 = 0x0001_0113;
/// 0: the link is up.
pub const GEN_MEDIA_CONNECT_STATUS: u32 = 0x0001_0114;
/// Frames in one message.
pub const GEN_MAXIMUM_SEND_PACKETS: u32 = 0x0001_0115;
/// Version of this NIC.
pub const GEN_VENDOR_DRIVER_VERSION: u32 = 0x0001_0116;
/// The guest's IP addresses, which Windows tells.
pub const GEN_NETWORK_LAYER_ADDRESSES: u32 = 0x0001_0118;
/// Where protocols want room for a header.
pub const GEN_TRANSPORT_HEADER_OFFSET: u32 = 0x0001_0119;
/// None in particular.
pub const GEN_PHYSICAL_MEDIUM: u32 = 0x0001_0202;
/// What spreading over channels there can be.
pub const GEN_RECEIVE_SCALE_CAPABILITIES: u32 = 0x0001_0203;
/// What spreading over channels there is.
pub const GEN_RECEIVE_SCALE_PARAMETERS: u32 = 0x0001_0204;
/// Speed in bit/s, of NDIS 6.
pub const GEN_MAX_LINK_SPEED: u32 = 0x0001_0206;
/// Whether the link is up, of NDIS 6.
pub const GEN_LINK_STATE: u32 = 0x0001_0207;
/// The speed that the driver wants.
pub const GEN_LINK_PARAMETERS: u32 = 0x0001_0208;
/// The guest's name.
pub const GEN_MACHINE_NAME: u32 = 0x0001_021A;
/// A parameter by name: the address, offloads.
pub const GEN_RNDIS_CONFIG_PARAMETER: u32 = 0x0001_021B;

/// Frames sent.
pub const GEN_XMIT_OK: u32 = 0x0002_0101;
/// Frames received.
pub const GEN_RCV_OK: u32 = 0x0002_0102;
/// Frames not sent.
pub const GEN_XMIT_ERROR: u32 = 0x0002_0103;
/// Frames not received.
pub const GEN_RCV_ERROR: u32 = 0x0002_0104;
/// Frames not received for want of room.
pub const GEN_RCV_NO_BUFFER: u32 = 0x0002_0105;
/// All counters, of NDIS 6.
pub const GEN_STATISTICS: u32 = 0x0002_0106;
/// First of twelve: bytes and frames to one, to groups, to all; sent, then received.
pub const GEN_DIRECTED_BYTES_XMIT: u32 = 0x0002_0201;
/// Last of the twelve.
pub const GEN_BROADCAST_FRAMES_RCV: u32 = 0x0002_020C;
/// Frames that wait to be sent.
pub const GEN_TRANSMIT_QUEUE_LENGTH: u32 = 0x0002_020E;
/// What the guest may call the NIC.
pub const GEN_FRIENDLY_NAME: u32 = 0x0002_0216;
/// Bytes received.
pub const GEN_BYTES_RCV: u32 = 0x0002_0219;
/// Bytes sent.
pub const GEN_BYTES_XMIT: u32 = 0x0002_021A;
/// Frames received and dropped.
pub const GEN_RCV_DISCARDS: u32 = 0x0002_021B;
/// Frames not sent but dropped.
pub const GEN_XMIT_DISCARDS: u32 = 0x0002_021C;

/// The address of the NIC.
pub const PERMANENT_ADDRESS: u32 = 0x0101_0101;
/// The address in use.
pub const CURRENT_ADDRESS: u32 = 0x0101_0102;
/// Groups.
pub const MULTICAST_LIST: u32 = 0x0101_0103;
/// How many groups there can be.
pub const MAXIMUM_LIST_SIZE: u32 = 0x0101_0104;
/// None.
pub const ETHERNET_MAC_OPTIONS: u32 = 0x0101_0105;
/// How frames look that have offloads.
pub const OFFLOAD_ENCAPSULATION: u32 = 0x0101_010A;
/// One more group.
pub const ADD_MULTICAST_ADDRESS: u32 = 0x0101_0208;
/// One group less.
pub const DELETE_MULTICAST_ADDRESS: u32 = 0x0101_0209;
/// First of three errors of wires, of which there is none.
pub const RCV_ERROR_ALIGNMENT: u32 = 0x0102_0101;
/// The second.
pub const XMIT_ONE_COLLISION: u32 = 0x0102_0102;
/// The third.
pub const XMIT_MORE_COLLISIONS: u32 = 0x0102_0103;

/// Offloads in force.
pub const TCP_OFFLOAD_CURRENT_CONFIG: u32 = 0xFC01_020B;
/// Switches offloads.
pub const TCP_OFFLOAD_PARAMETERS: u32 = 0xFC01_020C;
/// Offloads that there are.
pub const TCP_OFFLOAD_HARDWARE_CAPABILITIES: u32 = 0xFC01_020D;
/// The guest goes to sleep, or wakes up.
pub const PNP_SET_POWER: u32 = 0xFD01_0101;
/// May the guest go to sleep?
pub const PNP_QUERY_POWER: u32 = 0xFD01_0102;

/// What any guest is told that there is.
pub(super) const COMMON: &[u32] = &[
    GEN_SUPPORTED_LIST,
    GEN_HARDWARE_STATUS,
    GEN_MEDIA_SUPPORTED,
    GEN_MEDIA_IN_USE,
    GEN_MAXIMUM_LOOKAHEAD,
    GEN_MAXIMUM_FRAME_SIZE,
    GEN_LINK_SPEED,
    GEN_TRANSMIT_BUFFER_SPACE,
    GEN_RECEIVE_BUFFER_SPACE,
    GEN_TRANSMIT_BLOCK_SIZE,
    GEN_RECEIVE_BLOCK_SIZE,
    GEN_VENDOR_ID,
    GEN_VENDOR_DESCRIPTION,
    GEN_CURRENT_PACKET_FILTER,
    GEN_CURRENT_LOOKAHEAD,
    GEN_DRIVER_VERSION,
    GEN_MAXIMUM_TOTAL_SIZE,
    GEN_PROTOCOL_OPTIONS,
    GEN_MAC_OPTIONS,
    GEN_MEDIA_CONNECT_STATUS,
    GEN_MAXIMUM_SEND_PACKETS,
    GEN_VENDOR_DRIVER_VERSION,
    GEN_NETWORK_LAYER_ADDRESSES,
    GEN_TRANSPORT_HEADER_OFFSET,
    GEN_PHYSICAL_MEDIUM,
    GEN_MACHINE_NAME,
    GEN_RNDIS_CONFIG_PARAMETER,
    GEN_XMIT_OK,
    GEN_RCV_OK,
    GEN_XMIT_ERROR,
    GEN_RCV_ERROR,
    GEN_RCV_NO_BUFFER,
    GEN_TRANSMIT_QUEUE_LENGTH,
    GEN_FRIENDLY_NAME,
    PERMANENT_ADDRESS,
    CURRENT_ADDRESS,
    MULTICAST_LIST,
    MAXIMUM_LIST_SIZE,
    ETHERNET_MAC_OPTIONS,
    RCV_ERROR_ALIGNMENT,
    XMIT_ONE_COLLISION,
    XMIT_MORE_COLLISIONS,
    PNP_SET_POWER,
    PNP_QUERY_POWER,
];
/// What one with NDIS 6 is told besides.
pub(super) const NDIS6: &[u32] = &[
    GEN_MAX_LINK_SPEED,
    GEN_LINK_STATE,
    GEN_LINK_PARAMETERS,
    GEN_STATISTICS,
    GEN_BYTES_RCV,
    GEN_BYTES_XMIT,
    GEN_RCV_DISCARDS,
    GEN_XMIT_DISCARDS,
    OFFLOAD_ENCAPSULATION,
    ADD_MULTICAST_ADDRESS,
    DELETE_MULTICAST_ADDRESS,
    TCP_OFFLOAD_CURRENT_CONFIG,
    TCP_OFFLOAD_PARAMETERS,
    TCP_OFFLOAD_HARDWARE_CAPABILITIES,
];
/// What one with NDIS 6.30 is told besides.
pub(super) const NDIS630: &[u32] = &[GEN_RECEIVE_SCALE_CAPABILITIES, GEN_RECEIVE_SCALE_PARAMETERS];
