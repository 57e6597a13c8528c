"""What tests of several layers share: servers and databases, certificates, a gate in the wire, the house rules."""
