//! Chains that no driver may offer.

use super::*;

/// Writes a request that plugs one device block, and the place of its answer, as two descriptors from `table` on.
fn write_plug(rig: &mut Rig, table: u64) {
    let (from, to) = (rig.ring.place(0), rig.ring.place(1));
    rig.ring.fill(from, &Request { kind: RequestKind::Plug, addr: HOLE_END, nb_blocks: 1 }.to_bytes());
    // Address, size, flags (NEXT; WRITE), index of the next one: virtio 1.3, section 2.7.5.
    for (place, (address, size, flags, next)) in [(from, 24, 1, 1), (to, 10, 2, 0)].into_iter().enumerate() {
        let (size, flags, next): (u32, u16, u16) = (size, flags, next);
        let bytes =
            [&address.to_le_bytes()[..], &size.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
        rig.ring.fill(table + 16 * place as u64, &bytes.concat());
    }
}

/// The longest indirect chain has 65,535 descriptors, and a queue holds 128 such chains.
#[test]
fn an_indirect_descriptor_is_not_followed_and_breaks_the_queue() {
    let mut rig = rig(4 * MIB);
    let table = 2 * MIB;
    write_plug(&mut rig, table);
    for head in 0..3 {
        rig.ring.offer_indirect(head, table, 65_535);
    }
    interrupts(&mut rig.mem);
    assert_eq!(rig.mem.serve(), Served { busy: false, more: false });
    assert_eq!((rig.ring.used(), rig.shared.snapshot().mem[0].plugged), (0, Size(0)));
    assert_ne!(read(&mut rig.mem, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    assert_eq!(interrupts(&mut rig.mem), VIRTIO_MMIO_INT_CONFIG, "the driver is told");
    rig.ring = Ring::new(&rig.memory, 4 * MIB);
    initialise(&mut rig.mem, 1 << F_UNPLUGGED_INACCESSIBLE, &[&rig.ring]);
    assert_eq!(rig.ask(RequestKind::Plug, 0, 1).0, ACK);
}

/// A chain that goes in a circle is over when every descriptor of the table had its turn.
#[test]
fn a_chain_in_a_circle_ends() {
    let mut rig = rig(4 * MIB);
    write_plug(&mut rig, MIB);
    // The answer's descriptor leads back to itself: WRITE and NEXT, 1.
    rig.ring.fill(MIB + 16 + 12, &[3, 0, 1, 0]);
    rig.ring.offer_head(0);
    rig.mem.serve();
    assert_eq!((rig.ring.used(), rig.ring.written(0)), (1, 10));
    assert_eq!(rig.shared.snapshot().mem[0].plugged, Size(BLOCK));
}
