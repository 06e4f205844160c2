"""What a run is, apart from how it trains: configuration, directory and history."""
