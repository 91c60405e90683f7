"""The `.proto` files of the control services, and what `make protos` makes of them."""
