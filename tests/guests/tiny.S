# SPDX-License-Identifier: Apache-2.0
#
# The smallest guest: an ELF64 file without a PVH note, so that it is entered in long mode with the zero page in rsi.
#
# It writes one word to each page of the "touch=N" MiB from 16 MiB on, N taken from the kernel command line, says "ready" on
# COM1 and halts for good. With "echo" on the command line it sends back every byte that it receives instead of halting, and keeps
# it in memory: the first one at 8 MiB, each further one a page behind the one before; after a "!" it crashes. With "crash" it
# crashes at once. A crash is a triple fault.
#
# With "ring" besides "echo" it plays the driver of the generation counter before it sends a byte back: "v" says that it is there, "r"
# adds one to the counter and says that the random number generator was reseeded, "w" that one watcher is outdated, "a" that none
# is, "t" that watchers have been told, "g" that it is gone. The counter is where `machine::layout` has it in 32 MiB of memory.
# With "fork=N" it plays the driver's part of the fork point, for good: it announces itself, waits for a request, says that it has
# heard and that it stands still, and asks who it is. After a number of questions that it takes from the ticket, below N (a power of
# two; 0: after none), it gives up. It says what it was told: "o" original, "c" clone, "a" called off. A clone reports all that a
# driver reports. With "deaf" besides it never answers, with "slow" it does and never stands still; it says "d" or "s" then. With "no" it
# refuses. With "ask" besides it asks for a snapshot of itself whenever it receives a byte, which is the tag, and says "r" when it is
# refused.
# With "timer" it tells the boot timer that it has booted, right before it says "ready".
# Everything in it is simple enough for a software KVM.

.intel_syntax noprefix
.code64
.section .text
.globl _start

.equ COM1, 0x3f8
.equ LINE_STATUS, 0x3fd
.equ CMD_LINE_PTR, 0x228
.equ TOUCH_FROM, 16 << 20
.equ KEEP_FROM, 8 << 20
.equ PAGE, 4096
.equ COUNTER, (32 << 20) - (64 << 10) + PAGE
.equ DOORBELL, 0x640
.equ RESEEDED, DOORBELL + 0x4
.equ VERSION, DOORBELL + 0xc
.equ FEATURES, DOORBELL + 0x10
.equ REQUEST, DOORBELL + 0x14
.equ FORK, DOORBELL + 0x1c
.equ ABORT, DOORBELL + 0x20
.equ CHAIN, DOORBELL + 0x34
.equ ASK, DOORBELL + 0x38
.equ BOOT_TIMER, 0xc0000000
.equ BOOTED, 123

_start:
    mov     r8d, dword ptr [rsi + CMD_LINE_PTR]
    xor     r9d, r9d                # pages to touch
    xor     r10d, r10d              # echo?
    xor     r11d, r11d              # crash?
    xor     r12d, r12d              # ring?
    xor     r13d, r13d              # timer?
    xor     r14d, r14d              # fork? then one more than N
    xor     r15d, r15d              # how it plays that: a letter
    xor     ebp, ebp                # ask?
parse:
    mov     al, byte ptr [r8]
    test    al, al
    jz      touch
    cmp     dword ptr [r8], 0x6f686365      # "echo"
    jne     1f
    mov     r10d, 1
1:  cmp     dword ptr [r8], 0x676e6972      # "ring"
    jne     1f
    mov     r12d, 1
1:  cmp     dword ptr [r8], 0x656d6974      # "time"
    jne     1f
    mov     r13d, 1
1:  cmp     dword ptr [r8], 0x73617263      # "cras"
    jne     1f
    mov     r11d, 1
1:  cmp     dword ptr [r8], 0x66616564      # "deaf"
    je      8f
    cmp     dword ptr [r8], 0x776f6c73      # "slow"
    je      8f
    cmp     word ptr [r8], 0x6f6e           # "no"
    jne     1f
8:  movzx   r15d, byte ptr [r8]
1:  cmp     word ptr [r8], 0x7361           # "as"
    jne     1f
    cmp     byte ptr [r8 + 2], 'k'
    jne     1f
    mov     ebp, 1
1:  cmp     dword ptr [r8], 0x6b726f66      # "fork"
    jne     1f
    add     r8, 5
fork_number:
    movzx   eax, byte ptr [r8]
    sub     eax, '0'
    cmp     eax, 9
    ja      9f
    imul    r14d, r14d, 10
    add     r14d, eax
    inc     r8
    jmp     fork_number
9:  inc     r14d
    jmp     parse
1:  cmp     dword ptr [r8], 0x63756f74      # "touc"
    jne     2f
    cmp     word ptr [r8 + 4], 0x3d68       # "h="
    jne     2f
    add     r8, 6
number:
    movzx   eax, byte ptr [r8]
    sub     eax, '0'
    cmp     eax, 9
    ja      parse
    imul    r9d, r9d, 10
    add     r9d, eax
    inc     r8
    jmp     number
2:  inc     r8
    jmp     parse

touch:
    shl     r9, 8                   # MiB to pages
    mov     edi, TOUCH_FROM
3:  test    r9, r9
    jz      ready
    mov     qword ptr [rdi], rdi    # never zero
    add     rdi, PAGE
    dec     r9
    jmp     3b

ready:
    test    r13d, r13d
    jz      4f
    mov     ebx, BOOT_TIMER
    mov     byte ptr [rbx], BOOTED
4:  test    r14d, r14d
    jz      4f
    mov     eax, 9                  # fork point, READY and CHAIN
    mov     edx, FEATURES
    out     dx, eax
    mov     eax, 1
    mov     edx, VERSION
    out     dx, eax
4:  lea     rsi, [rip + message]
4:  mov     al, byte ptr [rsi]
    test    al, al
    jz      5f
    mov     dx, COM1
    out     dx, al
    inc     rsi
    jmp     4b
5:  test    r11d, r11d
    jnz     crash
    test    r14d, r14d
    jnz     fork
    mov     edi, KEEP_FROM
    test    r10d, r10d
    jnz     echo
halt:
    hlt
    jmp     halt

echo:
    mov     dx, LINE_STATUS
    in      al, dx
    test    al, 1                   # data ready
    jz      echo
    mov     dx, COM1
    in      al, dx
    mov     byte ptr [rdi], al
    add     rdi, PAGE
    test    r12d, r12d
    jz      6f
    call    ring
    mov     dx, COM1
6:  out     dx, al
    cmp     al, '!'
    jne     echo

crash:
    lidt    [rip + no_table]
    ud2

fork:
    mov     ebx, COUNTER
asked:
    test    ebp, ebp
    jnz     ask
heard:
    mov     edx, REQUEST
    in      eax, dx
    test    eax, eax
    jz      asked
    mov     esi, eax                # the ticket
    mov     r9d, eax
    cmp     r15d, 'd'
    je      idle
    movzx   eax, si
    or      eax, 1 << 24            # heard
    cmp     r15d, 'n'
    jne     1f
    movzx   eax, si
    or      eax, 2 << 24 | 1 << 16  # refused: a hook failed
1:  out     dx, eax
    cmp     r15d, 's'
    je      idle
    cmp     r15d, 'n'
    je      over
    mov     eax, esi
    mov     edx, FORK
    out     dx, eax
    mov     ecx, -1
    cmp     r14d, 1
    je      who
    mov     ecx, esi
    shr     ecx, 16
    lea     eax, [r14d - 2]         # N - 1
    and     ecx, eax
    inc     ecx
who:
    in      eax, dx
    test    eax, eax
    jnz     told
    dec     ecx
    jnz     who
    mov     eax, esi
    mov     edx, ABORT
    out     dx, eax
    mov     edx, FORK
    in      eax, dx
told:
    and     eax, 3
    cmp     eax, 2
    jne     1f
    call    report
    mov     eax, 2
1:  lea     rsi, [rip + names]
    mov     al, byte ptr [rsi + rax]
    mov     dx, COM1
    out     dx, al
over:                               # until the request is; there may be another one already
    mov     edx, REQUEST
    in      eax, dx
    cmp     eax, r9d
    je      over
    jmp     asked
idle:
    mov     eax, r15d
    mov     edx, COM1
    out     dx, al
    jmp     over

ask:
    mov     edx, LINE_STATUS
    in      al, dx
    test    al, 1                   # data ready
    jz      heard
    mov     edx, COM1
    xor     eax, eax
    in      al, dx
    mov     edx, ASK
    out     dx, eax
1:  in      eax, dx
    cmp     eax, 1
    jne     2f
    mov     edx, REQUEST
    in      eax, dx
    mov     edx, ASK
    test    eax, eax
    jz      1b
    jmp     heard
2:  test    eax, eax                # it is over already
    jz      heard
    mov     al, 'r'
    mov     edx, COM1
    out     dx, al
    jmp     asked

report:
    lock inc dword ptr [rbx]
    mov     eax, dword ptr [rbx]
    mov     edx, RESEEDED
    out     dx, eax
    mov     edx, CHAIN
    out     dx, eax
    mov     edx, DOORBELL           # REACHED
    out     dx, eax
    ret

ring:
    movzx   ecx, al
    mov     ebx, COUNTER
    mov     eax, 1
    mov     edx, DOORBELL + 0xc
    cmp     cl, 'v'
    je      7f
    mov     edx, DOORBELL + 0x8
    cmp     cl, 'w'
    je      7f
    xor     eax, eax
    cmp     cl, 'a'
    je      7f
    mov     edx, DOORBELL + 0xc
    cmp     cl, 'g'
    je      7f
    mov     edx, DOORBELL
    mov     eax, dword ptr [rbx]
    cmp     cl, 't'
    je      7f
    mov     edx, DOORBELL + 0x4
    cmp     cl, 'r'
    jne     8f
    lock inc dword ptr [rbx]
    mov     eax, dword ptr [rbx]
7:  out     dx, eax
8:  mov     eax, ecx
    ret

.section .rodata
no_table:
    .word   0
    .quad   0
names:
    .ascii  "poca"
message:
    .asciz  "ready\n"

.section .note.GNU-stack, "", @progbits
