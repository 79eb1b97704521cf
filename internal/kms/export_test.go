package kms

import (
	"crypto/rsa"
	"math/big"
)

// Wipe is wipe.
var Wipe = wipe

// TakeKey makes a key as calls have them.
func TakeKey() *rsa.PrivateKey {
	var pool keyPool
	pool.init()
	key, err := pool.take()
	if err != nil {
		panic(err)
	}
	return key
}

// SecretsOf are a key's secret numbers, as far as they can be reached.
func SecretsOf(key *rsa.PrivateKey) []*big.Int {
	return append([]*big.Int{key.D, key.Precomputed.Dp, key.Precomputed.Dq, key.Precomputed.Qinv}, key.Primes...)
}
