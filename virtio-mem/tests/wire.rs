//! Golden bytes: each layout once, spelled out by hand from the tables of virtio 1.3, sections
//! 5.15.4 and 5.15.6, every field with a value of its own.

use virtio_mem::wire::{
    BadRequest, BlockState, CONFIG_SIZE, Config, DEVICE_ID, F_ACPI_PXM, F_PERSISTENT_SUSPEND,
    F_UNPLUGGED_INACCESSIBLE, REQUEST_SIZE, RESPONSE_SIZE, Request, RequestKind, Response, ResponseType,
};

#[rustfmt::skip]
const CONFIG: [u8; 56] = [
    0x00, 0x00, 0x20, 0x00, 0x00, 0x00, 0x00, 0x00, // block_size
    0x34, 0x12,                                     // node_id
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00,             // padding
    0x00, 0x00, 0x00, 0x40, 0x01, 0x00, 0x00, 0x00, // addr
    0x00, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, // region_size
    0x00, 0x00, 0x00, 0x50, 0x00, 0x00, 0x00, 0x00, // usable_region_size
    0x00, 0x00, 0x60, 0x00, 0x00, 0x00, 0x00, 0x00, // plugged_size
    0x00, 0x00, 0x00, 0x40, 0x00, 0x00, 0x00, 0x00, // requested_size
];

#[test]
fn identity() {
    assert_eq!((DEVICE_ID, F_ACPI_PXM, F_UNPLUGGED_INACCESSIBLE, F_PERSISTENT_SUSPEND), (24, 0, 1, 2));
    assert_eq!((CONFIG_SIZE, REQUEST_SIZE, RESPONSE_SIZE), (56, 24, 10));
}

#[test]
fn config() {
    let config = Config {
        block_size: 2 << 20,
        node_id: 0x1234,
        addr: 5 << 30,
        region_size: 8 << 30,
        usable_region_size: 0x5000_0000,
        plugged_size: 6 << 20,
        requested_size: 1 << 30,
    };
    assert_eq!(config.to_bytes(), CONFIG);
    let mut bytes = CONFIG;
    bytes[10..16].fill(0xa5);
    assert_eq!(Config::from_bytes(&bytes), config, "padding is not looked at");
}

#[test]
fn requests() {
    for (kind, code) in [
        (RequestKind::Plug, 0),
        (RequestKind::Unplug, 1),
        (RequestKind::UnplugAll, 2),
        (RequestKind::State, 3),
    ] {
        let request = Request { kind, addr: 0x0102_0304_0506_0708, nb_blocks: 0x090a };
        #[rustfmt::skip]
        let golden = [
            code, 0,                                        // type
            0, 0, 0, 0, 0, 0,                               // padding
            0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01, // addr
            0x0a, 0x09,                                     // nb_blocks
            0, 0, 0, 0, 0, 0,                               // padding
        ];
        assert_eq!(request.to_bytes(), golden);
        let mut long = [0xa5; 40];
        long[..2].copy_from_slice(&golden[..2]);
        long[8..18].copy_from_slice(&golden[8..18]);
        assert_eq!(Request::from_bytes(&long), Ok(request), "padding and the tail are not looked at");
    }
}

#[test]
fn no_requests() {
    let bytes = Request { kind: RequestKind::State, addr: 0, nb_blocks: 1 }.to_bytes();
    for len in 0..REQUEST_SIZE {
        assert_eq!(Request::from_bytes(&bytes[..len]), Err(BadRequest::Short { len }));
    }
    for code in [4, 0x100, u16::MAX] {
        let mut bytes = bytes;
        bytes[..2].copy_from_slice(&code.to_le_bytes());
        assert_eq!(Request::from_bytes(&bytes), Err(BadRequest::UnknownType(code)));
    }
}

#[test]
fn responses() {
    let kinds =
        [(ResponseType::Ack, 0), (ResponseType::Nack, 1), (ResponseType::Busy, 2), (ResponseType::Error, 3)];
    let states = [(BlockState::Plugged, 0), (BlockState::Unplugged, 1), (BlockState::Mixed, 2)];
    for (kind, kind_code) in kinds {
        for (state, state_code) in states {
            let response = Response { kind, state };
            let mut bytes = [kind_code, 0, 0, 0, 0, 0, 0, 0, state_code, 0];
            assert_eq!(response.to_bytes(), bytes);
            bytes[2..8].fill(0xa5);
            assert_eq!(Response::from_bytes(&bytes), response, "padding is not looked at");
        }
    }
    assert_eq!(Response::new(ResponseType::Nack).to_bytes(), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(Response::with_state(BlockState::Mixed).to_bytes(), [0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
}

#[test]
fn unknown_responses_are_not_now_and_look_closer() {
    for code in [4, 0x100, u16::MAX] {
        let mut bytes = [0; RESPONSE_SIZE];
        bytes[..2].copy_from_slice(&code.to_le_bytes());
        assert_eq!(Response::from_bytes(&bytes).kind, ResponseType::Busy);
        let mut bytes = [0; RESPONSE_SIZE];
        bytes[8..].copy_from_slice(&(code | 4).to_le_bytes());
        assert_eq!(Response::from_bytes(&bytes), Response::with_state(BlockState::Mixed));
    }
}
