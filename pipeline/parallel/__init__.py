"""Process groups, layouts and the engines that run the network under them."""
