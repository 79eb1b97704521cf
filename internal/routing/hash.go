package routing

// hash is FNV-1a over what has been given so far.
type hash uint64

const (
	fnvOffset hash = 14695981039346656037
	fnvPrime  hash = 1099511628211
)

// hashOf begins a hash with a key, closed by a zero byte that keeps "a"+"bc"
// and "ab"+"c" apart.
func hashOf(key string) hash { return fnvOffset.add(key) * fnvPrime }

func (h hash) add(s string) hash {
	for i := range len(s) {
		h = (h ^ hash(s[i])) * fnvPrime
	}
	return h
}

// rendezvous is the hash of a key and an instance: for each key it puts the
// instances in an order of its own, and an instance that goes leaves the order
// of the others as it was.
func (h hash) rendezvous(instanceID string) uint64 { return mix(uint64(h.add(instanceID))) }

// mix is the finaliser of MurmurHash3. FNV needs one: its high bits, which
// decide a comparison, hardly depend on the last bytes.
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// Purposes that one hash is asked a fraction for. Each gives another one, which
// says nothing about the hash's place among others.
const (
	forProbe     uint64 = 0x9e3779b97f4a7c15
	forSlowStart uint64 = 0xbf58476d1ce4e5b9
	forOffer     uint64 = 0x94d049bb133111eb
	forVersion   uint64 = 0xd6e8feb86659fd93
)

// fraction turns a hash into an even number from 0 to just below 1.
func fraction(h, purpose uint64) float64 {
	return float64(mix(h^purpose)>>11) / (1 << 53)
}
