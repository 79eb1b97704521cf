package kms

import (
	"crypto/rand"
	"crypto/rsa"
	"math/big"
)

const (
	rsaBits = 2048 // what KMS takes at least; more costs more, for a key that lives a second
	// keysAhead is how many keys wait: making one takes some 60 ms of a core, and
	// calls that come together should not wait for each other's.
	keysAhead = 4
)

// keyPool has RSA keys made before they are needed, each for one use.
type keyPool struct {
	ready  chan *rsa.PrivateKey
	making chan struct{} // holds a token while a key is made in the background
}

func (p *keyPool) init() {
	p.ready, p.making = make(chan *rsa.PrivateKey, keysAhead), make(chan struct{}, 1)
	p.refill()
}

// take gives a key that nobody else gets.
func (p *keyPool) take() (*rsa.PrivateKey, error) {
	select {
	case key := <-p.ready:
		return key, nil
	default:
		return rsa.GenerateKey(rand.Reader, rsaBits)
	}
}

// refill makes keys in the background until enough are ready, on one core. It is
// for when a call is over: making a key would hold up the very call that has taken
// one.
func (p *keyPool) refill() {
	select {
	case p.making <- struct{}{}:
	default:
		return // somebody does
	}
	go func() {
		defer func() { <-p.making }()
		for len(p.ready) < cap(p.ready) {
			key, err := rsa.GenerateKey(rand.Reader, rsaBits)
			if err != nil {
				return // take says so
			}
			p.ready <- key // there is room: nobody else puts one in
		}
	}()
}

// wipe clears what can be reached of a private key.
func wipe(key *rsa.PrivateKey) {
	secrets := append([]*big.Int{key.D, key.Precomputed.Dp, key.Precomputed.Dq, key.Precomputed.Qinv}, key.Primes...)
	for _, secret := range secrets {
		if secret != nil {
			clear(secret.Bits())
		}
	}
}
