"""What a TPM 2.0 says and is told, in bytes (TCG TPM 2.0 Library, revision 1.59); no TPM library is needed."""
