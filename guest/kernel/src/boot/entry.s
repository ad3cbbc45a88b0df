# Start-up code, for the boot CPU and for all others. There are two entries:
#
#   pvh_start   the boot CPU, by the PVH boot ABI: 32-bit protected mode, flat segments, paging
#               off, ebx = address of the start_info structure
#   trampoline  every other CPU, by INIT-SIPI: real mode, at the page that SIPI named
#
# Both lead to `enter_long_mode`, which turns on paging with the boot page tables and jumps to the kernel in
# the upper half. The tables map the first GiB three times: at its physical address, in the direct map, and at
# the address that the kernel is linked for. Mirrors Linux `arch/x86/platform/pvh/head.S` and
# `arch/x86/realmode/rm/trampoline_64.S`.
#
# Invariant: this code and its data are linked at their physical address, below 4 GiB.

    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 4, 18                  # name size, value size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

    .section .note.tidevm, "a", @note
    .balign 4
    .long 7, 4, 1                   # tidevm_abi::NOTE_NAME
    .asciz "tidevm"
    .balign 4
    .long 1

    .section .boot.data, "aw", @progbits
    .balign 4096
    .global boot_pml4
boot_pml4:
    .quad boot_pdpt + 3             # identity map, until all CPUs are up
    .fill 272, 8, 0
    .quad boot_pdpt_direct + 3      # 273: direct map at 0xffff888000000000
    .fill 237, 8, 0
    .quad boot_pdpt_kernel + 3      # 511: kernel at 0xffffffff80000000
boot_pdpt:
    .quad boot_pd + 3
    .fill 511, 8, 0
boot_pdpt_direct:
    .quad boot_pd_direct + 3
    .fill 511, 8, 0
boot_pdpt_kernel:
    .fill 510, 8, 0
    .quad boot_pd + 3
    .quad 0
boot_pd:
    .set frame, 0
    .rept 512
    .quad frame + 0x83              # present, writable, 2 MiB
    .set frame, frame + 0x200000
    .endr
boot_pd_direct:
    .set frame, 0
    .rept 512
    .quad frame + 0x8000000000000083 # the same, not executable
    .set frame, frame + 0x200000
    .endr

    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        # 0x08: 32-bit code
    .quad 0x00cf93000000ffff        # 0x10: data
    .quad 0x00af9b000000ffff        # 0x18: 64-bit code
boot_gdt_pointer:
    .word . - boot_gdt - 1
    .long boot_gdt

# Stack and entry point that `enter_long_mode` jumps with; `cpu/smp.rs` rewrites both before each SIPI.
    .balign 8
    .global boot_stack
boot_stack:
    .quad {boot_area} + {stack_top}
    .global boot_entry
boot_entry:
    .quad {kernel_start}

    .section .boot.text, "ax", @progbits
    .code32
    .global pvh_start
pvh_start:
    cld
    mov %ebx, %edi                  # first argument of the kernel: start_info
    lgdt boot_gdt_pointer
    ljmp $0x08, $enter_long_mode

enter_long_mode:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $0xa0, %eax                 # CR4: PAE, PGE; no OSFXSR: an SSE instruction is #UD
    mov %eax, %cr4
    mov $boot_pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx           # EFER: LME, NXE
    rdmsr
    or $0x900, %eax
    wrmsr
    mov $0x80010033, %eax           # CR0: PG, WP, NE, ET, MP, PE
    mov %eax, %cr0
    ljmp $0x18, $long_mode
    .code64
long_mode:
    mov %edi, %edi                  # the upper half is undefined after the switch
    mov boot_stack, %rsp
    xor %ebp, %ebp
    push %rbp                       # no return address: ends backtraces, aligns as `call` does
    jmp *boot_entry

# `cpu/smp.rs` copies this below 1 MiB. It runs at any page, so it addresses its data through %cs only.
    .code16
    .global trampoline_start
trampoline_start:
    cli
    cld
    lgdtl %cs:(trampoline_gdt - trampoline_start)
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    ljmpl $0x08, $enter_long_mode
    .balign 4
trampoline_gdt:
    .word 31
    .long boot_gdt
    .global trampoline_end
trampoline_end:
    .code64
