"""Numbers that all backends share with gsplat 1.5, so that they draw the same image."""

EPS2D = 0.3  # px², added to the diagonal of the projected covariance
NEAR, FAR = 0.01, 1e10  # world units of z-depth; Gaussians outside are not drawn (NEAR unless the caller says)
ALPHA_MAX = 0.999
ALPHA_MIN = 1.0 / 255.0  # fainter contributions are skipped
TRANSMITTANCE_MIN = 1e-4  # a Gaussian that would bring a pixel below is dropped, and all behind it
SIGMA_EXTENT = 3.33  # beyond this many standard deviations alpha is under ALPHA_MIN even at opacity 1
RATIO_MIN = 1e-10  # floor of the antialiased opacity factor, squared: far below ALPHA_MIN, keeps gradients finite
EWA_MARGIN = 0.3  # the EWA Jacobian is evaluated at most this far outside the frame, in half-frames
