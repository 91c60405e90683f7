"""What both sides' processes stand on: durable files, run events and their sinks, the Flower codec."""
