//! The address plan. Every lab uses the same addresses: its namespaces keep them apart.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// IPv4 or IPv6, for tests that claim the same about both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

impl From<IpAddr> for Family {
    fn from(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// The many addresses that one client namespace owns beside its address on the LAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crowd {
    /// `10.64.0.0/14` for the first client.
    pub v4: Ipv4Net,
    /// `fd64::/64` for the first client.
    pub v6: Ipv6Net,
}

impl Crowd {
    /// How many members each family has.
    pub const SIZE: u32 = (1 << 18) - 2;

    /// The address of member `number`, counted from 0.
    ///
    /// # Panics
    /// If there are not so many.
    #[must_use]
    pub fn member(&self, number: u32, family: Family) -> IpAddr {
        assert!(number < Self::SIZE, "a crowd has {} members", Self::SIZE);
        let offset = number + 1;
        match family {
            Family::V4 => Ipv4Addr::from_bits(self.v4.network().to_bits() + offset).into(),
            Family::V6 => Ipv6Addr::from_bits(self.v6.network().to_bits() + u128::from(offset)).into(),
        }
    }

    pub(crate) fn of(client: u8) -> Self {
        let v4 = Ipv4Addr::new(10, 64 + 4 * client, 0, 0);
        let v6 = Ipv6Addr::new(0xfd64, u16::from(client), 0, 0, 0, 0, 0, 0);
        Self { v4: Ipv4Net::new_assert(v4, 14), v6: Ipv6Net::new_assert(v6, 64) }
    }
}

/// How many clients the plan has room for: from `10.64.0.0` in steps of a /14.
pub(crate) const MAX_CLIENTS: u8 = 48;
/// How many backends the plan has room for.
pub(crate) const MAX_BACKENDS: u8 = 250;

/// A LAN: `10.N.0.0/16` and `fd00:N::/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lan(u8);

impl Lan {
    pub const FRONT: Self = Self(1);
    pub const BACK: Self = Self(2);
    pub const V4_PREFIX: u8 = 16;
    pub const V6_PREFIX: u8 = 64;

    pub const fn v4(self, place: Place) -> Ipv4Addr {
        let (group, number) = place.numbers();
        Ipv4Addr::new(10, self.0, group, number)
    }

    pub const fn v6(self, place: Place) -> Ipv6Addr {
        let (group, number) = place.numbers();
        Ipv6Addr::new(0xfd00, self.0 as u16, 0, 0, 0, 0, group as u16, number as u16)
    }

    pub const fn mac(self, place: Place) -> Mac {
        let (group, number) = place.numbers();
        Mac([0x02, 0, 0, self.0, group, number])
    }

    /// The hardware address of the switch's port that leads to `place`.
    pub const fn port_mac(self, place: Place) -> Mac {
        let (group, number) = place.numbers();
        Mac([0x02, 0, 1, self.0, group, number])
    }

    /// The part of the LAN that clients are in.
    pub fn clients(self) -> [IpNet; 2] {
        [
            Ipv4Net::new_assert(self.v4(Place::Client(0)), 24).trunc().into(),
            Ipv6Net::new_assert(self.v6(Place::Client(0)), 112).trunc().into(),
        ]
    }
}

/// A host's place on a LAN.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    Balancer,
    Backend(u8),
    Client(u8),
    Vip(u8),
}

impl Place {
    const fn numbers(self) -> (u8, u8) {
        match self {
            Self::Balancer => (0, 1),
            Self::Backend(number) => (1, number + 1),
            Self::Client(number) => (2, number + 1),
            Self::Vip(number) => (9, number + 1),
        }
    }
}

/// Every address there is.
pub(crate) fn everywhere() -> [IpNet; 2] {
    [
        Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into(),
        Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into(),
    ]
}
