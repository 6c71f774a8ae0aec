/* The demo model as read-only data of the program; see embedded.h. */
    .section .rodata
    .balign 64
    .globl embedded_model
embedded_model:
    .incbin "tools/demo/lepton-demo.gguf"
    .globl embedded_model_end
embedded_model_end:
    .byte 0
    .section .note.GNU-stack, "", %progbits
