# Interrupt entries, one per vector. Each builds the same frame, `Frame` of `cpu/trap.rs`: registers, vector,
# error code, and the words that the CPU pushed. The CPU aligns the stack to 16 before it pushes, and the size
# of the frame is a multiple of 16, so the call below has the alignment that the ABI wants.
    .section .text
    .balign 16
    .global interrupt_entries
interrupt_entries:
    .set vector, 0
    .rept 256
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp interrupt_common
    .org interrupt_entries + 16 * (vector + 1), 0x90    # fails if an entry is longer than 16 bytes
    .set vector, vector + 1
    .endr

    .type interrupt_common, @function
interrupt_common:
    push %rax
    push %rcx
    push %rdx
    push %rbx
    push %rbp
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    cld
    mov %rsp, %rdi
    call {interrupt}
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rbp
    pop %rbx
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq
    .size interrupt_common, . - interrupt_common
