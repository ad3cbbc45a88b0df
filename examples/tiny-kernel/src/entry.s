# The entry by the PVH boot ABI (32-bit protected mode, paging off, ebx = address of start_info), and the interrupt handler.
# The first page tables map the first GiB where it is. Mirrors Linux `arch/x86/platform/pvh/head.S`.

    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 4, 18                  # name size, value size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

    .section .boot, "awx", @progbits
    .balign 4096
pml4:
    .quad pdpt + 3                  # present, writable
    .fill 511, 8, 0
pdpt:
    .quad pd + 3
    .fill 511, 8, 0
pd:
    .set frame, 0
    .rept 512
    .quad frame + 0x83              # present, writable, 2 MiB
    .set frame, frame + 0x200000
    .endr
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 0x08: 64-bit code
    .quad 0x00cf93000000ffff        # 0x10: data
gdt_pointer:
    .word . - gdt - 1
    .long gdt

    .code32
    .global pvh_start
pvh_start:
    cld
    lgdt gdt_pointer
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $0x20, %eax                 # CR4: PAE
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx           # EFER: LME
    rdmsr
    or $0x100, %eax
    wrmsr
    mov $0x80010033, %eax           # CR0: PG, WP, NE, ET, MP, PE
    mov %eax, %cr0
    ljmp $0x08, $long_mode
    .code64
long_mode:
    mov %ebx, %edi                  # first argument: start_info
    mov $stack_top, %esp
    xor %ebp, %ebp
    call {kernel_start}

# Closes all lines of both interrupt controllers, so that a level-triggered line does not interrupt again before its driver ran.
    .global interrupt
interrupt:
    push %rax
    mov $0xff, %al
    out %al, $0x21
    out %al, $0xa1
    mov $0x20, %al                  # end of interrupt
    out %al, $0xa0
    out %al, $0x20
    pop %rax
    iretq

    .section .bss
    .balign 16
    .skip 65536
stack_top:
