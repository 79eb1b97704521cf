package sqlite

import "context"

// Rows counts what is in the file, expired or not.
func (s *Store) Rows(ctx context.Context) (count int, err error) {
	db, err := s.file.Current(ctx)
	if err != nil {
		return 0, err
	}
	err = db.QueryRowContext(ctx, `SELECT count(*) FROM items`).Scan(&count)
	return count, err
}
