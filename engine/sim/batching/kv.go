package batching

import "math/bits"

// kvCache is the engine's memory for keys and values, in blocks. A block that
// no sequence holds keeps what is in it until somebody needs the room: those
// are the cache of prefixes, and the one that was let go first is taken first.
//
// A full block is known by a hash of its tokens and of all that went before
// them, so that a block is found only behind the prefix that it was computed
// behind. (vLLM's design: docs.vllm.ai/en/latest/design/prefix_caching.)
type kvCache struct {
	blocks []block // the last one is the list's sentinel
	byHash map[uint64]int32
	free   int // blocks that no sequence holds
}

// block is linked into the list of free blocks while nobody holds it.
type block struct {
	hash       uint64 // 0: not full, or its content is known by another block
	holders    int32
	prev, next int32
}

func newKVCache(n int) *kvCache {
	c := &kvCache{blocks: make([]block, n+1), byHash: make(map[uint64]int32), free: n}
	for i := range c.blocks {
		c.blocks[i].prev, c.blocks[i].next = int32(i-1), int32(i+1)
	}
	end := int32(n)
	c.blocks[0].prev, c.blocks[end].next = end, 0
	return c
}

func (c *kvCache) size() int { return len(c.blocks) - 1 }

// find gives the blocks that hold the longest prefix, at most n blocks of it,
// and how many of them nobody holds so far.
func (c *kvCache) find(s *sequence, n int) (found []int32, idle int) {
	for i := range n {
		b, ok := c.byHash[s.hash(i)]
		if !ok {
			break
		}
		found = append(found, b)
		if c.blocks[b].holders == 0 {
			idle++
		}
	}
	return found, idle
}

// hold gives the sequence blocks that others may hold as well.
func (c *kvCache) hold(s *sequence, found []int32) {
	for _, i := range found {
		b := &c.blocks[i]
		if b.holders == 0 {
			c.unlink(b)
		}
		b.holders++
	}
	s.blocks = append(s.blocks, found...)
	s.known = len(s.blocks)
}

// grow gives the sequence room for that many tokens in all. It says false, and
// does nothing, if there is not enough.
func (c *kvCache) grow(s *sequence, tokens int) bool {
	need := blocksFor(tokens) - len(s.blocks)
	if need > c.free {
		return false
	}
	for range need {
		i := c.blocks[c.size()].next
		b := &c.blocks[i]
		c.unlink(b)
		c.forget(i)
		b.holders = 1
		s.blocks = append(s.blocks, i)
	}
	// Full blocks are known from the step on that computes them, as in vLLM.
	for ; s.known < tokens/BlockTokens; s.known++ {
		h := s.hash(s.known)
		if _, dup := c.byHash[h]; !dup {
			c.byHash[h] = s.blocks[s.known]
			c.blocks[s.blocks[s.known]].hash = h
		}
	}
	return true
}

// release takes the sequence's blocks back. The ends of prefixes are the first
// to be taken for something else: they are of use to fewer.
func (c *kvCache) release(s *sequence) {
	end := int32(c.size())
	for k := len(s.blocks) - 1; k >= 0; k-- {
		i := s.blocks[k]
		b := &c.blocks[i]
		if b.holders--; b.holders > 0 {
			continue
		}
		b.prev, b.next = c.blocks[end].prev, end
		c.blocks[b.prev].next = i
		c.blocks[end].prev = i
		c.free++
	}
	s.blocks, s.known = s.blocks[:0], 0
}

func (c *kvCache) unlink(b *block) {
	c.blocks[b.prev].next, c.blocks[b.next].prev = b.next, b.prev
	c.free--
}

// forget makes a block's content unknown.
func (c *kvCache) forget(i int32) {
	if h := c.blocks[i].hash; h != 0 {
		delete(c.byHash, h)
		c.blocks[i].hash = 0
	}
}

// reset makes all content unknown. Who holds a block keeps it.
func (c *kvCache) reset() {
	clear(c.byHash)
	for i := range c.blocks {
		c.blocks[i].hash = 0
	}
}

func blocksFor(tokens int) int { return (tokens + BlockTokens - 1) / BlockTokens }

// hash is the name of the sequence's i-th full block.
func (s *sequence) hash(i int) uint64 {
	for len(s.hashes) <= i {
		k := len(s.hashes)
		h := s.root
		if k > 0 {
			h = s.hashes[k-1]
		}
		for t := k * BlockTokens; t < (k+1)*BlockTokens; t++ {
			h = mix(h, uint64(s.token(t)))
		}
		s.hashes = append(s.hashes, max(h, 1)) // 0 is for no name
	}
	return s.hashes[i]
}

func rootHash(salt string) uint64 {
	h := uint64(len(salt))
	for i := range len(salt) {
		h = mix(h, uint64(salt[i]))
	}
	return h
}

func mix(h, v uint64) uint64 {
	hi, lo := bits.Mul64(h^v^0x9e3779b97f4a7c15, 0xd6e8feb86659fd93)
	return hi ^ lo ^ h<<1
}
