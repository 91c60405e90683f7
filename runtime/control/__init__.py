"""Control between commands and daemons: small gRPC services on a private unix socket, or over mutual TLS."""
