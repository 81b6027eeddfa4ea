"""Who counts as one client where there is nothing but an address to tell."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

SITE = 64  # bits of an IPv6 address that are a site's; the rest is for whoever is there to choose


def parsed(text: str) -> IPv4Address | IPv6Address | None:
    """Also of "1.2.3.4:80" and "[::1]:80", as some proxies write it; an IPv4 address within IPv6 is that of IPv4."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def group_of(address: str) -> str:
    """The address for IPv4, its network for IPv6; what is no address stays as it is."""
    found = parsed(address)
    if isinstance(found, IPv6Address):
        return str(ip_network((found, SITE), strict=False))
    return str(found or address)
