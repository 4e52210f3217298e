"""Wire messages: .proto files and the code generated from them (`make proto`)."""
