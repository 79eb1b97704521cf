package quota

// Held is of how many tenants a limiter keeps something.
func (l *Limiter) Held() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.debts)
}
